"""Find duplicate documents in a source, and documents of an evaluation set that are also in the training data.

Documents are compared by their token ids. Exact copies have the same hash; near-duplicates are found in minhash.py.
"""

from dataclasses import dataclass

import numpy as np

from data.inspection.minhash import first_with, match_pairs, near_matches
from data.inspection.survey import Survey

SHOWN_PAIRS = 5


@dataclass(frozen=True, eq=False)
class Matches:
    """Duplicates as pairs of indices: documents of one survey (see survey.py) that also occur in another survey, or
    earlier in the same survey."""

    exact: np.ndarray
    """int64, [n, 2]: the index of the document, and the index of the first document with equal tokens."""
    near: np.ndarray
    """int64, [n, 2]: the index of the document, and the index of a near-duplicate that is not an exact copy."""


def duplicates(own: Survey) -> Matches:
    """Find the documents that are copies or near-duplicates of an earlier document."""
    numbers = np.arange(len(own.hashes))
    first = first_with(own.hashes, own.hashes)
    copies = first < numbers
    originals = np.flatnonzero(~copies)
    near = near_matches(own.signatures[originals], own.signatures[originals], earlier=True)
    return Matches(match_pairs(copies, first), np.stack([originals[near[:, 0]], originals[near[:, 1]]], axis=1))


def overlap(known: Survey, asked: Survey) -> Matches:
    """Find the documents in `asked` that have a copy or a near-duplicate in `known`."""
    first = first_with(known.hashes, asked.hashes)
    others = np.flatnonzero(first < 0)
    near = near_matches(known.signatures, asked.signatures[others], earlier=False)
    return Matches(match_pairs(first >= 0, first), np.stack([others[near[:, 0]], near[:, 1]], axis=1))


def duplicate_lines(own: Survey) -> list[str]:
    found = duplicates(own)
    copies, near = _share(found.exact, own), _share(found.near, own)
    line = f"{own.name}: {len(own.hashes):,} documents, {copies} copies of an earlier document, {near} near-duplicates"
    return [line, *_compared(own), *_pair_lines(found, own, own)]


def overlap_lines(known: Survey, asked: Survey) -> list[str]:
    found = overlap(known, asked)
    exact, near = _share(found.exact, asked), _share(found.near, asked)
    line = f"{asked.name}: {len(asked.hashes):,} documents, {exact} also in {known.name}, {near} near-duplicates"
    return [line, *_compared(known), *_compared(asked), *_pair_lines(found, asked, known)]


def _share(pairs: np.ndarray, own: Survey) -> str:
    return f"{len(pairs):,} ({len(pairs) / max(len(own.hashes), 1):.1%})"


def _compared(own: Survey) -> list[str]:
    n = len(own.hashes)
    return (
        [f"  (only the first {n:,} of {own.n_documents:,} documents in {own.name} were compared)"]
        if n < own.n_documents
        else []
    )


def _pair_lines(found: Matches, asked: Survey, known: Survey) -> list[str]:
    lines = []
    for word, pairs in (("equals", found.exact), ("is close to", found.near)):
        for one, other in pairs[:SHOWN_PAIRS].tolist():
            lines.append(f"  {_place(asked, one)} {word} {_place(known, other)}")
        if len(pairs) > SHOWN_PAIRS:
            lines.append(f"  ... and {len(pairs) - SHOWN_PAIRS:,} more")
    return lines


def _place(own: Survey, number: int) -> str:
    row, place = own.places[number].tolist()
    return f"{own.name} row {row} document {place + 1}"
