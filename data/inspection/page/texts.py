"""The texts of documents that the page lists: the longest and oddest documents, copies, and documents that are also in
evaluation data."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.base.console import printable
from data.inspection.documents import read_document
from data.inspection.duplicates import Matches
from data.inspection.oddity import STATISTICS
from data.inspection.page.source import InspectedSource
from data.tokenization.tokenizer import Tokenizer

LISTED_DOCUMENTS, LISTED_MATCHES = 20, 10
SHOWN_TOKENS, SHOWN_CHARACTERS = 600, 1500
"""For each listed document: the maximum number of tokens that are decoded, and of characters that are shown."""
_PREVIEW = 100
"""Number of characters of the preview of a document."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An item of a list: a line, and the texts that are shown when the reader opens it."""

    line: str
    preview: str
    texts: list[tuple[str, str]]
    """(title, text) of each document."""


def longest(source: InspectedSource, tokenizer: Tokenizer) -> list[Entry]:
    return [
        _entry(source, source.texts.places[n], f"{source.texts.tokens[n]:,} tokens", tokenizer)
        for n in source.texts.longest(LISTED_DOCUMENTS).tolist()
    ]


def oddest(source: InspectedSource, tokenizer: Tokenizer) -> list[Entry]:
    """The documents with the highest scores. Each line states the statistic that determines the score."""
    numbers = source.texts.oddest(LISTED_DOCUMENTS).tolist()
    if not numbers:
        return []
    medians, deviations, entries = source.texts.medians(), source.texts.deviations(), []
    for n in numbers:
        which = int(np.argmax(deviations[n]))
        value, usual = (format_statistic(which, float(each[which])) for each in (source.texts.values[n], medians))
        line = f"score {deviations[n][which]:.1f}: {STATISTICS[which]} {value} (median {usual})"
        entries.append(_entry(source, source.texts.places[n], line, tokenizer))
    return entries


def format_statistic(which: int, value: float) -> str:
    return f"{value:.2f}" if which == 0 else f"{value:.1%}"


def exact_matches(asked: InspectedSource, known: InspectedSource, found: Matches, tokenizer: Tokenizer) -> list[Entry]:
    """The documents of `known` with the largest numbers of copies in `asked`."""
    copies = Counter(found.exact[:, 1].tolist())
    first_copy = dict(reversed(found.exact[:, ::-1].tolist()))
    entries = []
    for number, count in copies.most_common(LISTED_MATCHES):
        places = [known.survey.places[number], asked.survey.places[first_copy[number]]]
        line = f"{place_of(known, places[0])} = {place_of(asked, places[1])}"
        more = f" and {count - 1:,} more" if count > 1 else ""
        entries.append(_entry(known, places[0], line + more, tokenizer, with_place=False))
    return entries


def near_matches(asked: InspectedSource, known: InspectedSource, found: Matches, tokenizer: Tokenizer) -> list[Entry]:
    return [*_near(asked, known, found, tokenizer)]


def _near(asked: InspectedSource, known: InspectedSource, found: Matches, tokenizer: Tokenizer) -> Iterator[Entry]:
    for one, other in found.near[:LISTED_MATCHES].tolist():
        places = (asked, asked.survey.places[one]), (known, known.survey.places[other])
        texts = [(place_of(source, place), _text(source, place, tokenizer)) for source, place in places]
        line = " ≈ ".join(title for title, _ in texts)
        yield Entry(line=line, preview=_preview(texts[0][1]), texts=texts)


def place_of(source: InspectedSource, place: np.ndarray) -> str:
    row, number = place.tolist()
    return f"{source.name} row {row:,} document {number + 1}"


def _entry(
    source: InspectedSource, place: np.ndarray, line: str, tokenizer: Tokenizer, *, with_place: bool = True
) -> Entry:
    text, where = _text(source, place, tokenizer), place_of(source, place)
    line = f"{line}, {where}" if with_place else line
    return Entry(line=line, preview=_preview(text), texts=[("" if with_place else where, text)])


def _text(source: InspectedSource, place: np.ndarray, tokenizer: Tokenizer) -> str:
    """The beginning of the document's text."""
    row, number = place.tolist()
    ids = read_document(source.rows, (row, number), SHOWN_TOKENS)
    text = printable(tokenizer.decode(ids[:SHOWN_TOKENS]))
    is_cut = len(ids) > SHOWN_TOKENS or len(text) > SHOWN_CHARACTERS
    return text[:SHOWN_CHARACTERS] + (" […]" if is_cut else "")


def _preview(text: str) -> str:
    line = " ".join(text[: 4 * _PREVIEW].split())
    return line if len(line) <= _PREVIEW else f"{line[:_PREVIEW]}…"
