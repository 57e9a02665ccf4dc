"""The JavaScript for the charts: vega, vega-lite and vega-embed as one script, cached on disk."""

import os
import uuid
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

_EDITOR = "https://vega.github.io/editor/"
"""A URL that vega-embed uses in its menu. The page does not show this menu."""


@cache
def library() -> str:
    """Return the script from the cache, or create it with vl-convert, which takes about 1.5 seconds."""
    file = _cached_file()
    with suppress(OSError, UnicodeError):
        if file is not None and file.stat().st_uid == os.getuid():
            return file.read_text(encoding="utf-8")
    text = _made()
    if file is not None:
        with suppress(OSError):
            _write(file, text)
    return text


def _made() -> str:
    import vl_convert

    text = vl_convert.javascript_bundle(None)  # pyright: ignore[reportArgumentType]: None adds no snippet
    # These sequences must not occur inside a script element.
    return text.replace(_EDITOR, "").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _cached_file() -> Path | None:
    """Return the cache file, or None if the user has no home directory."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return folder / "dropless" / f"vega-{version('vl-convert-python')}.js"


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
