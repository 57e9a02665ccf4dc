"""The JavaScript that draws the charts: vega, vega-lite and vega-embed in one text, kept on disk between runs."""

import os
import uuid
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

_EDITOR = "https://vega.github.io/editor/"
"""Where vega-embed's menu leads, which the page does not have."""


@cache
def library() -> str:
    """Made by vl-convert in about 1.5 seconds, and read where it has been made before."""
    file = _cache_folder() / f"vega-{version('vl-convert-python')}.js"
    with suppress(OSError, UnicodeError):
        if file.stat().st_uid == os.getuid():
            return file.read_text(encoding="utf-8")
    import vl_convert

    text = vl_convert.javascript_bundle(None)  # pyright: ignore[reportArgumentType]: without a snippet of our own
    text = text.replace(_EDITOR, "")
    text = text.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    part = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}")
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    return text


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dropless"
