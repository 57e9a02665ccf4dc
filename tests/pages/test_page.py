"""The skeleton of pages: values are escaped, scripts and styles are not, and files are written atomically."""

from pathlib import Path

import pytest

from data.base.errors import ConfigError
from data.pages.page import render, write

HOSTILE = "</script><script>alert(1)</script>"
TEMPLATE = """{% extends "page.html" %}
{% block style %}{{ asset("own.css") }}{% endblock %}
{% block content %}{{ value }}{% endblock %}"""


def test_values_are_escaped_and_assets_are_inserted_unchanged(tmp_path: Path) -> None:
    (tmp_path / "own.html").write_text(TEMPLATE)
    (tmp_path / "own.css").write_text("a > b { content: '{{ x }}'; }")
    page = render(tmp_path, "own.html", {"title": HOSTILE, "value": HOSTILE}, {"text": HOSTILE})
    assert page.count("<script") == 3
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 3  # the title, the heading and the value
    assert "a > b { content: '{{ x }}'; }" in page
    assert '{"text":"\\u003c/script\\u003e' in page


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    output = tmp_path / "page.html"
    output.mkdir()
    with pytest.raises(ConfigError, match="specify another file with --html"):
        write("text", output, hint="specify another file with --html")
    assert [*tmp_path.iterdir()] == [output]
