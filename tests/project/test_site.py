"""The documentation as a web site: it builds without a warning, loads nothing from the web, and looks as on GitHub."""

import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from mkdocs.commands.build import build
from mkdocs.config import load_config

from scripts.dev.mkdocs_hook import PAGES, navigation

ROOT = Path(__file__).parents[2]
SOURCES = [path for path in (*map(ROOT.joinpath, PAGES), *sorted((ROOT / "docs").rglob("*.md"))) if path.exists()]
BLOCKS = {"ul", "ol", "li", "table", "tr", "pre", "blockquote", "h1", "h2", "h3", "h4", "img"}
LOADED = {"script": "src", "link": "href", "img": "src", "source": "srcset", "iframe": "src", "video": "src"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The site, built strictly: a broken link, an unknown anchor or a page without a group in index.md is an error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        folder = tmp_path_factory.mktemp("site")
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
        yield folder


class Tags(HTMLParser):
    """The start tags of a page, or of its article, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def blocks(html: str) -> list[str]:
    return [tag for tag, _ in Tags(html).tags if tag in BLOCKS]


def page_of(source: Path) -> str:
    name = PAGES.get(source.name) if source.parent == ROOT else str(source.relative_to(ROOT / "docs"))
    return f"{str(name).removesuffix('.md')}.html"


def test_no_page_loads_anything_from_the_web(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        for tag, attributes in Tags(page.read_text("utf-8")).tags:
            loaded = attributes.get(LOADED[tag]) or "" if tag in LOADED else ""
            assert not re.match(r"([a-z]+:)?//", loaded), f"{page.name}: <{tag}> loads {loaded}"
            assert "mermaid" not in (attributes.get("class") or ""), f"{page.name}: diagrams need a script from the web"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", style.read_text("utf-8")), style.name


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_lists_tables_and_code_are_those_that_github_shows(site: Path, source: Path) -> None:
    """Python-Markdown, for one, needs an empty line before a list and four spaces before a nested one."""
    text = source.read_text("utf-8")
    article = (site / page_of(source)).read_text("utf-8").partition("<article")[2].partition("</article>")[0]
    assert blocks(article) == blocks(MarkdownIt("commonmark").enable("table").render(text))


def test_links_to_files_of_the_repository_stay_on_the_site(site: Path) -> None:
    for page in site.rglob("*.html"):
        for tag, attributes in Tags(page.read_text("utf-8")).tags:
            target = (attributes.get("href") or "") if tag == "a" else ""
            if target and page.name != "404.html" and not re.match(r"[a-z]+:|#|/", target):
                file = Path(os.path.normpath(page.parent / target.partition("#")[0]))
                assert file.is_relative_to(site), f"{page.name}: {target}"
                assert file.exists(), f"{page.name}: {target}"


def test_the_index_is_the_navigation() -> None:
    index = "# Title\n\n## One\n\n- [A](a.md): text\n- [Read me](../README.md): text\n\n## Two\n\n- [B](b/c.md): text\n"
    assert navigation(index)[1:] == [{"One": [{"A": "a.md"}, {"Read me": "overview.md"}]}, {"Two": [{"B": "b/c.md"}]}]
