"""Reads the elements, texts and data of an HTML page."""

import json
from html.parser import HTMLParser
from typing import Any


class Elements(HTMLParser):
    """Collects all elements of a page, and its text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem is None:
            self.texts.append(data)
        elif self.found[-1][0] == "script":
            self.scripts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def payload(self) -> dict[str, Any]:
        return json.loads(self.scripts[-3])

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.found)
