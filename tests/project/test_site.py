"""The documentation as a web site: it builds without a warning, loads nothing from the web, and looks as on GitHub."""

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from mkdocs.commands.build import build
from mkdocs.config import load_config

from scripts.dev.mkdocs_hook import PAGES, navigation

ROOT = Path(__file__).parents[2]
SOURCES = [path for path in (*map(ROOT.joinpath, PAGES), *sorted((ROOT / "docs").rglob("*.md"))) if path.exists()]
BLOCKS = {"ul", "ol", "li", "table", "tr", "pre", "blockquote", "h1", "h2", "h3", "h4", "img"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (420, 1400)
"""In pixels: a phone and a desktop."""
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


def test_links_and_images_are_on_the_site(site: Path) -> None:
    for page in site.rglob("*.html"):
        for tag, attributes in Tags(page.read_text("utf-8")).tags:
            target = attributes.get({"a": "href", "img": "src", "source": "srcset"}.get(tag, "")) or ""
            if target and page.name != "404.html" and not re.match(r"[a-z]+:|#|/", target):
                file = Path(os.path.normpath(page.parent / target.partition("#")[0]))
                assert file.is_relative_to(site), f"{page.name}: {target}"
                assert file.exists(), f"{page.name}: {target}"


def test_the_index_is_the_navigation() -> None:
    index = "# Title\n\n## One\n\n- [A](a.md): text\n- [Read me](../README.md): text\n\n## Two\n\n- [B](b/c.md): text\n"
    assert navigation(index)[1:] == [{"One": [{"A": "a.md"}, {"Read me": "overview.md"}]}, {"Two": [{"B": "b/c.md"}]}]


MEASURE = """<!doctype html><body><script>
(async () => {
  const wide = [];
  for (const width of WIDTHS) for (const page of PAGES) {
    const frame = document.createElement("iframe");
    frame.style.width = width + "px";
    document.body.append(frame);
    await new Promise(loaded => { frame.onload = loaded; frame.src = page; });
    await new Promise(drawn => setTimeout(drawn, 200));
    if (frame.contentDocument.documentElement.scrollWidth > width) wide.push(page + " at " + width);
    frame.remove();
  }
  document.body.innerText = "wide: " + JSON.stringify(wide);
})();
</script>"""


@pytest.mark.proof
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_no_page_is_wider_than_the_screen(site: Path) -> None:
    assert CHROMIUM is not None
    pages = [str(page.relative_to(site)) for page in site.rglob("*.html") if page.name != "404.html"]
    measure = MEASURE.replace("WIDTHS", json.dumps(WIDTHS)).replace("PAGES", json.dumps(pages))
    (site / "measure.html").write_text(measure, "utf-8")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={site.parent / 'chromium'}",
        ]
        command += ["--window-size=1500,1000", "--virtual-time-budget=120000", "--dump-dom"]
        command.append(f"http://127.0.0.1:{server.server_port}/measure.html")
        shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
        server.shutdown()
    (site / "measure.html").unlink()
    assert "wide: []" in shown
