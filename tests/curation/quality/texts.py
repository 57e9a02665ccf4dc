"""Texts for tests of the quality rules: documentation of Python's standard library, and random changes of it that the
rules detect."""

import ast
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from data.curation.base.document import Document

SYMBOLS = ("#", "...", "…", "•", "-", "{", "[12]", "[citation needed]", "42", "3.14", "!", '"', "。", "état", "中文字")
LINES = ("- item", "• item", "More ...", "Read more…", "#", "We use cookies.", "Enable JavaScript now.", "   ", "\x0c")
EDGE_CASES = (
    "",
    " ",
    "\n\n\n",
    ".",
    "...",
    "a",
    "a b",
    "\u2028",
    "x" * 2000,
    "a\x00b \x1c c",
    "1 2 3\n" * 50,
    "ab a b. " * 9,
)


def document(text: str) -> Document:
    return Document(1, "web", "a.jsonl", 0, text, len(text), {})


def texts(n_files: int = 24, n_changed: int = 2) -> list[str]:
    """Docstrings, each also with random changes, and edge cases."""
    rng = random.Random(0)
    found = list(dict.fromkeys(_docstrings(n_files)))
    return [*EDGE_CASES, *found, *(_changed(text, rng) for text in found for _ in range(n_changed))]


def _docstrings(n_files: int) -> Iterator[str]:
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:n_files]:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield text


def _changed(text: str, rng: random.Random) -> str:
    """The text with repeated words, lines or paragraphs, additional symbols, or other line breaks."""
    change = rng.randrange(6)
    lines = text.split("\n")
    if change == 0:
        words = text.split(" ")
        start, n = rng.randrange(len(words)), rng.randrange(1, 12)
        words[start:start] = words[start : start + n] * rng.randrange(1, 9)
        return " ".join(words)
    if change == 1:
        return "\n".join(line for line in lines for _ in range(rng.choice((1, 1, 2, 3))))
    if change == 2:
        return "\n\n".join([text] * rng.randrange(2, 4))
    if change == 3:
        return " ".join(
            word + rng.choice((" ", "")) + rng.choice(SYMBOLS) * rng.randrange(2) for word in text.split(" ")
        )
    if change == 4:
        return "\n".join(part for line in lines for part in (line, rng.choice(LINES)))
    return text.replace(" ", rng.choice((" ", "\n", ". ", "\r\n"))) + rng.choice(("", ".", "\n"))
