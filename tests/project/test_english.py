"""The English of code, messages and documentation is plain: no coined phrases, and the glossary's words for names."""

import ast
import re
from pathlib import Path

import pytest

from scripts.dev import prose

# Each with what to write instead.
PHRASES = {
    r"mend(s|ed|ing)?": "fix",
    r"told|said": "reported, shown, printed, or the subject and its verb",
    r"ways? out": "a fix, a suggestion",
    r"(go|goes|going|gone|went) on (from|with)": "resume from, continue",
    r"a house|the house|house rules": "the code base",
    r"rows given|streams? gives?": "rows drawn, a stream contributes",
    r"lost, cut|flipped shards?": "missing, truncated or corrupt",
    r"what was (written|fed)": "configuration error, data error",
    r"(bring|brings|brought|bringing) along|(bring|brings) \w+ along": "ships with, includes",
    r"(has|have|had) to be there": "is required",
    r"for those that come": "evicted",
    r"once a pass": "once per epoch",
    r"(need|needs) the arithmetic": "shows the calculation",
    r"at the (most|least)": "at most, at least",
    r"likeliest": "most likely",
    r"of a token's": "active parameters",
    r"one's own": "your own",
    r"on purpose": "deliberately, by design",
}
NAMES = {"mend", "mended", "said", "told", "complaint", "complaints"}
WHOLE_NAMES = {"wrong", "way_out"}

FORBIDDEN = re.compile(r"\b(" + "|".join(PHRASES) + r")\b", re.IGNORECASE)
FILES = [file for file in prose.tracked([*prose.SAMPLED, "tests"]) if file != Path(__file__).relative_to(prose.ROOT)]


def names(source: str) -> set[str]:
    """The identifiers of a Python file, those inside f-strings too."""
    fields = ("id", "name", "arg", "attr", "asname")
    found = {getattr(node, field, None) for node in ast.walk(ast.parse(source)) for field in fields}
    return {name for name in found if isinstance(name, str)}


def forbidden_names(source: str) -> list[str]:
    parts = {name: set(re.findall(r"[A-Z]?[a-z]+|\d+", name)) for name in names(source)}
    return sorted(
        name
        for name, words in parts.items()
        if name in WHOLE_NAMES or "way_out" in name or {word.lower() for word in words} & NAMES
    )


@pytest.mark.parametrize("folder", sorted({file.parts[0] for file in FILES}))
def test_prose_has_no_coined_phrases(folder):
    found = [
        str(passage)
        for file in FILES
        if file.parts[0] == folder
        for passage in prose.passages(file)
        if FORBIDDEN.search(passage.text)
    ]
    assert found == []


@pytest.mark.parametrize("folder", sorted({file.parts[0] for file in FILES if file.suffix == ".py"}))
def test_names_are_those_of_the_glossary(folder):
    found = {
        str(file): forbidden_names((prose.ROOT / file).read_text("utf-8"))
        for file in FILES
        if file.parts[0] == folder and file.suffix == ".py"
    }
    assert {file: names for file, names in found.items() if names} == {}


def test_forbidden_phrases_and_names_are_found():
    source = '"""What is wrong is told."""\nway_out = f"goes on from {told}, at the most"  # mended below\n'
    passages = list(prose.of_python(source))
    assert [kind for _, kind, text in sorted(passages) if FORBIDDEN.search(text)] == ["docstring", "comment", "message"]
    assert forbidden_names(source) == ["told", "way_out"]


def test_passages_have_the_place_and_the_text_of_each_kind():
    source = (
        '"""A module."""\n\nx = f"the value {y!r} is not a" \\\n    " number"\n'
        "# One comment\n# of two lines.\nz = 1  # noqa: E741\n"
    )
    assert sorted(prose.of_python(source)) == [
        (1, "docstring", "A module."),
        (3, "message", "the value {y} is not a number"),
        (5, "comment", "One comment of two lines."),
    ]
    page = "# A heading\n\nA paragraph\nof two lines.\n\n- an item\n\n```bash\ncode\n```\n\n| a cell | b |\n|---|---|\n"
    assert list(prose.of_markdown(page)) == [
        (1, "heading", "A heading"),
        (3, "text", "A paragraph of two lines."),
        (6, "text", "an item"),
        (12, "cell", "a cell"),
    ]
    assert list(prose.of_comments("a: 1  # why it is 1\nb: '#2'\n# a line\n# and another\n")) == [
        (1, "comment", "why it is 1"),
        (3, "comment", "a line and another"),
    ]


def test_a_sample_is_drawn_by_its_seed_alone():
    drawn = prose.sample(5, 1, ["scripts/dev"])
    assert drawn == prose.sample(5, 1, ["scripts/dev"]) != prose.sample(5, 2, ["scripts/dev"])
    assert all(prose.n_words(sentence.text) >= prose.MESSAGE_WORDS for sentence in drawn)
