"""Write a page: one HTML file that contains its data and makes no external requests."""

import datetime
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.base.errors import os_errors_named
from data.pages.library import library

_ASSETS = Path(__file__).parent / "assets"


def render(assets: Path, template: str, values: Mapping[str, Any], payload: Any) -> str:
    """Return the page of a template in the folder `assets`. The template extends assets/page.html of this package. All
    values are escaped. The payload is the JSON value that the page's JavaScript reads."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    loader = FileSystemLoader([assets, _ASSETS])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Styles and scripts are inserted unchanged: their braces are not template syntax.
    environment.globals["asset"] = lambda name: Markup(loader.get_source(environment, name)[0])
    return environment.get_template(template).render(
        **values,
        written=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        library=Markup(library()),
        payload=Markup(_json(payload)),
    )


def write(text: str, output: Path, *, hint: str) -> None:
    """Write the file atomically, so that a reader sees either the old page or the new one. Raises ConfigError, which
    ends with the hint, if the file cannot be written."""
    part = output.with_name(f".part-{uuid.uuid4().hex[:8]}-{output.name}")
    with os_errors_named(output, "written", hint=hint):
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(output)
        finally:
            part.unlink(missing_ok=True)


def _json(value: Any) -> str:
    """Return JSON for a script element. The JSON is escaped so that a text with `</script>` cannot end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), default=_plain)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be converted to JSON")
