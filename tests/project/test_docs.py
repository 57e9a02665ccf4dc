"""The README is short, every page of docs/ is linked from it or from docs/index.md, and no link is broken."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from train.config.json_schema import explain

ROOT = Path(__file__).parents[2]
README, INDEX = ROOT / "README.md", ROOT / "docs" / "index.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`]*`")
# [text](target), ![text](target "title") and the reference [name]: target
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)|^ *\[[^\]]+\]:\s*<?([^\s>]+)", re.MULTILINE)
EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def links(page: Path) -> list[str]:
    """Targets of the page's links, without those into the web."""
    text = CODE.sub("", FENCED.sub("", page.read_text("utf-8")))
    targets = [inline or reference for inline, reference in LINK.findall(text)]
    return [target for target in targets if not EXTERNAL.match(target)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: a heading's second occurrence gets -1, and so on."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.+?)[ #]*$", FENCED.sub("", page.read_text("utf-8")), re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        anchor = name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        again = 0
        while anchor in found:
            again += 1
            anchor = f"{name}-{again}"
        found.add(anchor)
    return found


def broken(page: Path) -> list[str]:
    """The links of a page that lead to no file, or to no heading of it."""

    def leads_somewhere(target: str) -> bool:
        path, _, anchor = unquote(target).partition("#")
        file = page.parent / path if path else page
        return file.exists() and (not anchor or (file.suffix == ".md" and anchor in anchors(file)))

    return [target for target in links(page) if not leads_somewhere(target)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    assert broken(page) == []


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# A `b`, and (c)\n\n## Twice\n\n## Twice\n\n```\n# Code\n```\n")
    good = "[a](other.md#a-b-and-c) [b](other.md#twice-1) [c](https://x.org/no) [d](#here)"
    code = "`[e](no)`\n```\n[f](no)\n```\n"
    bad = "[a](no.md) [b](other.md#twice-2) [c](other.md#code) [d](#there)\n\n[e]: gone.md\n"
    (tmp_path / "page.md").write_text(f"# Here\n\n{good} {code}\n{bad}")
    assert broken(tmp_path / "page.md") == ["no.md", "other.md#twice-2", "other.md#code", "#there", "gone.md"]


def test_the_readme_is_short() -> None:
    assert len(README.read_text("utf-8").splitlines()) <= 180


def test_every_page_is_linked_from_the_readme_or_the_index() -> None:
    linked = {(page.parent / target.partition("#")[0]).resolve() for page in (README, INDEX) for target in links(page)}
    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in {README, *linked}] == []


def test_the_explanation_of_a_key_is_that_of_the_program() -> None:
    assert explain("train_loader.dataset.excess_length") in (ROOT / "docs" / "training.md").read_text("utf-8")
