"""Texts with planted near-duplicates, for scripts/bench/near_duplicates.py."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from scripts.bench.stdlib_text import library

FRAGMENT = 12
"""Documents consist of fragments of this number of consecutive words of Python's standard library, so that, as in real
text, different documents share words and some n-grams."""
COPIED, RATES = 0.2, (0.002, 0.01, 0.03, 0.1)
"""The share of documents of which there are copies, and the shares of words that are replaced in a copy."""


class Texts:
    """Makes random documents."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.words = [word for text in library()[:400] for word in text.split()]

    def document(self) -> list[str]:
        n_words = int(min(max(self.rng.lognormal(np.log(200), 0.7), 40), 5000))
        starts = self.rng.integers(0, len(self.words) - FRAGMENT, n_words // FRAGMENT + 1)
        return [word for start in starts for word in self.words[start : start + FRAGMENT]]

    def copy(self, words: Sequence[str], rate: float) -> list[str]:
        """The document with this share of its words replaced, at least one."""
        changed = list(words)
        for at in self.rng.integers(0, len(words), max(round(rate * len(words)), 1)):
            changed[at] = self.words[self.rng.integers(0, len(self.words))]
        return changed

    def mixture(self, n: int) -> list[str]:
        """n documents in random order; some have one or two copies."""
        found: list[str] = []
        while len(found) < n:
            words = self.document()
            found.append(" ".join(words))
            if self.rng.random() < COPIED:
                rates = self.rng.choice(RATES, self.rng.integers(1, 3))
                found += [" ".join(self.copy(words, rate)) for rate in rates]
        return [found[at] for at in self.rng.permutation(n)]

    def pairs(self, n: int) -> list[str]:
        """2n documents, where documents 2i and 2i + 1 are similar. The similarity is above 0.9 for about 46% of the
        pairs, and below 0.6 for about 48%."""
        bands = ((0.0, 0.009), (0.009, 0.055), (0.058, 0.2))
        found = []
        for band in self.rng.choice(len(bands), n, p=(0.46, 0.06, 0.48)):
            words = self.document()
            found += [" ".join(words), " ".join(self.copy(words, self.rng.uniform(*bands[band])))]
        return found


def write_documents(folder: Path, texts: list[str], n_files: int = 4) -> Path:
    """Write the texts as documents of a curation. Ids are positions in `texts`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data.curation.base.tasks import ARROW_SCHEMA

    folder.mkdir()
    for number, ids in enumerate(np.array_split(np.arange(len(texts)), n_files)):
        pq.write_table(pa.Table.from_pylist(list(_rows(ids, texts)), schema=ARROW_SCHEMA), folder / f"{number}.parquet")
    return folder


def _rows(ids: np.ndarray, texts: list[str]) -> Iterator[dict[str, object]]:
    for id in ids.tolist():
        n_tokens = len(texts[id].split())
        yield {
            "id": id,
            "source": "web",
            "file": "a",
            "position": id,
            "text": texts[id],
            "n_tokens": n_tokens,
            "scores": [],
        }
