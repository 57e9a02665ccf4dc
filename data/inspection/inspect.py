"""A look at prepared rows: what is trained on, how long documents are, and which of them are there twice.

Documents are compared as token ids. Exact copies have the same hash. Nearly alike are two that share at least ALIKE of
their 5-grams (Jaccard), as MinHash estimates it (Broder 1997): documents meet when a band of their signatures is equal.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from rich.text import Text

from data.loading.rows import Row, Rows, Verification
from data.mixing.permutation import splitmix64
from data.tokenization.tokenizer import Tokenizer

ALIKE = 0.8
NGRAM = 5
HASHES, BANDS = 64, 16
"""Of a signature. Two documents that share 0.8 of their n-grams meet with a chance of 0.9998, those that share 0.4 with
one of 0.34 (and are then told apart by the whole signature)."""
MOST_COMPARED = 500_000
"""Documents of a source that are compared: 264 bytes each."""
BINS = 20
SHOWN_PAIRS = 5

_MULTIPLIERS = splitmix64(np.arange(2 * HASHES, dtype=np.uint64)).reshape(2, HASHES, 1) | np.uint64(1)
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Control characters -> their pictures: data must not steer the terminal."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Survey:
    """Of all rows of a source."""

    name: str
    n_rows: int
    tokens: int
    trained_tokens: int
    lengths: np.ndarray
    """int64, [max_seq_len + 1]: how many documents have this many tokens."""
    places: np.ndarray
    """int64, [n, 2]: row and place in it of the documents that are compared, the first MOST_COMPARED."""
    hashes: np.ndarray
    """uint64, [n]."""
    signatures: np.ndarray
    """uint32, [n, HASHES]."""

    @property
    def n_documents(self) -> int:
        return int(self.lengths.sum())


def survey(name: str, rows: Rows, progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> Survey:
    """Reads every row once; `progress` is put around their numbers. Raises DataError for a damaged row."""
    lengths = np.zeros(rows.max_seq_len + 1, dtype=np.int64)
    tokens = trained = 0
    places: list[tuple[int, int]] = []
    hashes: list[int] = []
    signatures: list[np.ndarray] = []
    for number in progress(range(rows.n_rows)):
        row = rows.read(number)
        tokens += len(row.tokens)
        trained += int(np.count_nonzero(row.loss_mask))
        np.add.at(lengths, row.lengths, 1)
        for place, (ids, _) in enumerate(documents_of(row)):
            if len(places) < MOST_COMPARED:
                places.append((number, place))
                hashes.append(xxhash.xxh3_64_intdigest(ids.astype(np.int32).tobytes()))
                signatures.append(signature(ids))
    return Survey(
        name=name,
        n_rows=rows.n_rows,
        tokens=tokens,
        trained_tokens=trained,
        lengths=lengths,
        places=np.array(places, dtype=np.int64).reshape(-1, 2),
        hashes=np.array(hashes, dtype=np.uint64),
        signatures=np.array(signatures, dtype=np.uint32).reshape(-1, HASHES),
    )


def documents_of(row: Row) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Tokens and loss mask of each document."""
    ends = np.cumsum(row.lengths)
    for start, end in zip((ends - row.lengths).tolist(), ends.tolist(), strict=True):
        yield row.tokens[start:end], row.loss_mask[start:end]


def signature(ids: np.ndarray) -> np.ndarray:
    """MinHash of the document's n-grams, uint32 [HASHES]; one shorter than an n-gram is one itself."""
    ids = ids.astype(np.uint64)
    n = max(len(ids) - NGRAM + 1, 1)
    grams = np.zeros(n, dtype=np.uint64)
    for offset in range(min(NGRAM, len(ids))):
        grams = splitmix64(grams ^ ids[offset : offset + n])
    factors, shifts = _MULTIPLIERS
    return ((grams * factors + shifts) >> np.uint64(32)).min(axis=1).astype(np.uint32)


@dataclass(frozen=True, eq=False)
class Matches:
    """Documents of one survey that another (or the same one, earlier) has too: pairs of places in the two."""

    exact: np.ndarray
    """int64, [n, 2]: which document, and the first that equals it."""
    near: np.ndarray
    """int64, [n, 2], without the exact ones."""


def duplicates(own: Survey) -> Matches:
    """Documents of which an earlier one is a copy, or nearly one."""
    numbers = np.arange(len(own.hashes))
    first = _first_with(own.hashes, own.hashes)
    copies = first < numbers
    originals = np.flatnonzero(~copies)
    near = _near(own.signatures[originals], own.signatures[originals], earlier=True)
    return Matches(_pairs(copies, first), np.stack([originals[near[:, 0]], originals[near[:, 1]]], axis=1))


def overlap(known: Survey, asked: Survey) -> Matches:
    """Documents of `asked` that are in `known`, exactly or nearly."""
    first = _first_with(known.hashes, asked.hashes)
    others = np.flatnonzero(first < 0)
    near = _near(known.signatures, asked.signatures[others], earlier=False)
    return Matches(_pairs(first >= 0, first), np.stack([others[near[:, 0]], near[:, 1]], axis=1))


def _pairs(found: np.ndarray, first: np.ndarray) -> np.ndarray:
    return np.stack([np.flatnonzero(found), first[found]], axis=1)


def _near(known: np.ndarray, asked: np.ndarray, *, earlier: bool) -> np.ndarray:
    """[n, 2]: which of `asked` is nearly one of `known`, and which; with `earlier` one that stands before it."""
    match = np.full(len(asked), -1, dtype=np.int64)
    numbers = np.arange(len(asked))
    for known_keys, asked_keys in zip(_band_keys(known), _band_keys(asked), strict=True):
        first = _first_with(known_keys, asked_keys)
        candidates = numbers[(match < 0) & (first >= 0) & ((first < numbers) | (not earlier))]
        agree = (known[first[candidates]] == asked[candidates]).mean(axis=1)
        alike = candidates[agree >= ALIKE]
        match[alike] = first[alike]
    return _pairs(match >= 0, match)


def _band_keys(signatures: np.ndarray) -> Iterator[np.ndarray]:
    """uint64, of each band."""
    for band in np.split(signatures.astype(np.uint64), BANDS, axis=1):
        keys = np.zeros(len(band), dtype=np.uint64)
        for column in band.T:
            keys = splitmix64(keys ^ column)
        yield keys


def _first_with(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """For each key of `asked` the first place in `known` that has it, or -1."""
    keys, first = np.unique(known, return_index=True)
    if not len(keys):
        return np.full(len(asked), -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[at] == asked, first[at], -1)


def show_row(number: int, row: Row, tokenizer: Tokenizer, *, marks: bool) -> Text:
    """The row's text, each document under a line of its own; what is trained on is green, and with marks in ⟦ ⟧."""
    text = Text()
    for place, (ids, mask) in enumerate(documents_of(row)):
        trained = int(np.count_nonzero(mask))
        title = (
            f"── row {number}, document {place + 1} of {len(row.lengths)}: {len(ids):,} tokens, {trained:,} trained ──"
        )
        text.append(f"{title}\n", style="bold cyan")
        for run, is_trained in _runs(ids, mask):
            words = tokenizer.decode(run.tolist()).translate(_CONTROLS)
            open_mark, close_mark = ("⟦", "⟧") if marks and is_trained else ("", "")
            text.append(f"{open_mark}{words}{close_mark}", style="green" if is_trained else "bright_black")
        text.append("\n")
    return text


def _runs(ids: np.ndarray, mask: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
    """Stretches that are trained on, or are not."""
    cuts = np.flatnonzero(np.diff(mask != 0)) + 1
    for run, trained in zip(np.split(ids, cuts), np.split(mask, cuts), strict=True):
        yield run, bool(trained[0])


def summary_lines(own: Survey) -> list[str]:
    n, share = own.n_documents, own.trained_tokens / max(own.tokens, 1)
    counts = f"{own.n_rows:,} rows, {n:,} documents, {own.tokens:,} tokens"
    ends = np.cumsum(own.lengths)
    median, longest = int(np.searchsorted(ends, n / 2)), int(np.searchsorted(ends, n))
    return [
        f"{own.name}: {counts}, {own.trained_tokens:,} of them trained on ({share:.1%})",
        f"tokens of a document: mean {own.tokens / max(n, 1):.1f}, median {median}, longest {longest}",
    ]


def histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    """`(shortest, longest, documents)` of at most BINS bins of the same width, from counts by length."""
    there = np.flatnonzero(lengths)
    shortest, longest = int(there.min(initial=len(lengths))), int(there.max(initial=0))
    width = max(-(-(longest - shortest + 1) // BINS), 1)
    starts = range(shortest, longest + 1, width)
    return [(start, min(start + width - 1, longest), int(lengths[start : start + width].sum())) for start in starts]


def histogram_lines(lengths: np.ndarray, columns: int = 50) -> list[str]:
    bins = histogram(lengths)
    most, total = max((count for *_, count in bins), default=1), max(int(lengths.sum()), 1)
    digits = len(str(bins[-1][1])) if bins else 1
    return [
        f"  {start:>{digits}} to {end:>{digits}}  {'█' * round(columns * count / most):<{columns}}  "
        f"{count:,} ({count / total:.1%})"
        for start, end, count in bins
    ]


def draw_histogram(surveys: list[Survey], path: Path) -> None:
    """A PNG with the lengths of each source's documents."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.5 * len(surveys)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(len(surveys), 1, squeeze=False)
    for axis, own in zip(axes[:, 0], surveys, strict=True):
        bins = histogram(own.lengths)
        axis.bar(
            [start for start, *_ in bins],
            [count for *_, count in bins],
            width=[end - start + 1 for start, end, _ in bins],
            align="edge",
        )
        axis.set(title=own.name, xlabel="tokens", ylabel="documents")
    figure.savefig(path, format="png")


def duplicate_lines(own: Survey) -> list[str]:
    found = duplicates(own)
    copies, near = _share(found.exact, own), _share(found.near, own)
    line = f"{own.name}: of {len(own.hashes):,} documents {copies} are copies of an earlier one, {near} nearly so"
    return [line, *_compared(own), *_pair_lines(found, own, own)]


def overlap_lines(known: Survey, asked: Survey) -> list[str]:
    found = overlap(known, asked)
    exact, near = _share(found.exact, asked), _share(found.near, asked)
    line = f"{asked.name}: of {len(asked.hashes):,} documents {exact} are in {known.name} too, {near} nearly so"
    return [line, *_compared(known), *_compared(asked), *_pair_lines(found, asked, known)]


def _share(pairs: np.ndarray, own: Survey) -> str:
    return f"{len(pairs):,} ({len(pairs) / max(len(own.hashes), 1):.1%})"


def _compared(own: Survey) -> list[str]:
    n = len(own.hashes)
    return [f"  (of {own.name} only the first {n:,} of {own.n_documents:,})"] if n < own.n_documents else []


def _pair_lines(found: Matches, asked: Survey, known: Survey) -> list[str]:
    lines = []
    for word, pairs in (("is", found.exact), ("is nearly", found.near)):
        for one, other in pairs[:SHOWN_PAIRS].tolist():
            lines.append(f"  {_place(asked, one)} {word} {_place(known, other)}")
        if len(pairs) > SHOWN_PAIRS:
            lines.append(f"  ... and {len(pairs) - SHOWN_PAIRS:,} more")
    return lines


def _place(own: Survey, number: int) -> str:
    row, place = own.places[number].tolist()
    return f"{own.name} row {row} document {place + 1}"


def verification_lines(found: Verification) -> list[str]:
    lines = [
        f"{found.folder}: {found.n_shards:,} shards, {found.n_samples:,} samples, {len(found.broken)} shards broken"
    ]
    if found.unhashed:
        lines.append(f"  {found.unhashed} shards have no hash in the index: only their size and header were looked at")
    return lines + [f"  {shard.file}, samples {shard.first} to {shard.last}: {shard.why}" for shard in found.broken]
