"""Collects text from the Python installation: docstrings of the standard library, descriptions and licenses of
installed packages."""

import importlib.metadata
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from scripts.dev.example.questions import make_questions
from scripts.dev.make_stdlib_data import modules, split

MIN_CHARS, MAX_CHARS = 400, 3000
"""Minimum and maximum length of a document. Longer texts are divided between paragraphs."""
MAX_LICENSE_CHARS = 12_000
N_GRAM = 13
"""Held-out text has no sequence of this many words in common with the raw text, as in GPT-3 (arXiv:2005.14165,
appendix C)."""

_LICENSE_FILE = re.compile(r"(^|/)(LICEN[CS]E|COPYING|NOTICE)[^/]*$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts without planted defects."""

    raw: dict[str, list[str]] = field(default_factory=dict)
    """Documents by source."""
    heldout: list[str] = field(default_factory=list)
    """Documents of other modules and packages than those of `raw`."""
    questions: list[dict[str, str]] = field(default_factory=list)
    """Questions about modules that are neither in `raw` nor in `heldout`, as {prompt, response}."""


def collect(limit: int) -> Texts:
    """Return the texts of the first `limit` modules and the first `limit` packages, in a fixed order. Of every eight
    modules, one is held out for documents and one for questions; of every eight packages, one for documents."""
    files = list(itertools.islice(modules(), limit))
    described = list(itertools.islice(_packages(), limit))
    raw = {
        "library": list(_documents(_docstrings(file) for number, file in enumerate(files) if number % 8 > 1)),
        "packages": list(_documents(text for number, text in enumerate(_descriptions(described)) if number % 8)),
        "licenses": list(_licenses(described)),
    }
    heldout = [*map(_docstrings, files[::8]), *list(_descriptions(described))[::8]]
    asked = make_questions(files[1::8], heldout=1)
    questions = [
        {"prompt": each["prompt"], "response": each["response"]}
        for each in (*asked["heldout-name"], *asked["heldout-parameters"])
    ]
    known = Overlap(itertools.chain.from_iterable(raw.values()))
    documents = [text for text in _documents(heldout) if not known.contains_part(text)]
    known_or_heldout = Overlap((*itertools.chain.from_iterable(raw.values()), *documents))
    return Texts(
        raw=raw,
        heldout=documents,
        questions=[each for each in questions if not known_or_heldout.contains_part(each["prompt"] + each["response"])],
    )


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def shingles(words: list[str], n: int) -> set[tuple[str, ...]]:
    """All sequences of n words; the whole text if it is shorter."""
    return {tuple(words[start : start + n]) for start in range(max(len(words) - n + 1, 1))}


class Overlap:
    """Finds texts that have words in common with a collection of texts."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._n_grams: set[tuple[str, ...]] = set()
        joined = []
        for text in texts:
            words = words_of(text)
            self._n_grams |= shingles(words, N_GRAM)
            joined.append(f" {' '.join(words)} ")
        self._joined = "\n".join(joined)

    def contains_part(self, text: str) -> bool:
        """Whether N_GRAM words of the text, or the whole text if it is shorter, are in the collection."""
        words = words_of(text)
        if len(words) < N_GRAM:
            return f" {' '.join(words)} " in self._joined
        return not self._n_grams.isdisjoint(shingles(words, N_GRAM))


def _docstrings(file: Path) -> str:
    return split(file.read_text(encoding="utf-8"))["docstrings"]


def _packages() -> Iterator[importlib.metadata.Distribution]:
    """Installed packages, sorted by name. A package that is installed twice is returned once."""
    found = {each.metadata["Name"].lower(): each for each in importlib.metadata.distributions()}
    return (found[name] for name in sorted(found))


def _descriptions(packages: Iterable[importlib.metadata.Distribution]) -> Iterator[str]:
    for package in packages:
        yield str(package.metadata.json.get("description", ""))


def _licenses(packages: Iterable[importlib.metadata.Distribution]) -> Iterator[str]:
    for package in packages:
        for file in sorted(map(str, package.files or [])):
            path = Path(str(package.locate_file(file)))
            if _LICENSE_FILE.search(file) and path.is_file():
                text = path.read_text(encoding="utf-8", errors="ignore")
                if MIN_CHARS <= len(text) <= MAX_LICENSE_CHARS:
                    yield text


def _documents(texts: Iterable[str]) -> Iterator[str]:
    """Divide texts at blank lines into documents. Parts that are too short or too long are omitted."""
    for text in texts:
        part = ""
        for paragraph in re.split(r"\n\s*\n", text):
            if part and len(part) + len(paragraph) > MAX_CHARS:
                yield from _usable(part)
                part = ""
            part = f"{part}\n\n{paragraph}" if part else paragraph
        yield from _usable(part)


def _usable(text: str) -> Iterator[str]:
    text = text.strip()
    if MIN_CHARS <= len(text) <= MAX_CHARS:
        yield text
