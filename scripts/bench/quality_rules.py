"""Measures the speed of the quality rules beside datatrove's filters: on the same words, which are split with a regular
expression, and with datatrove's own words and sentences, if spaCy is installed.

All variants run in one process on the documents of Python's standard library, one after the other, in an order that
alternates.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

from data.curation.base.document import Document
from data.curation.base.step import DocumentStep
from data.curation.quality.c4_quality import C4Quality
from data.curation.quality.fineweb_quality import FineWebQuality
from data.curation.quality.gopher_quality import GopherQuality
from data.curation.quality.gopher_repetition import GopherRepetition
from data.curation.quality.splitters import regex_sentences, regex_words
from scripts.bench import common
from scripts.bench.stdlib_text import library

OURS: dict[str, type[DocumentStep]] = {
    "gopher_quality": GopherQuality,
    "gopher_repetition": GopherRepetition,
    "fineweb_quality": FineWebQuality,
    "c4_quality": C4Quality,
}
_FILTERS = "datatrove.pipeline.filters"
_SPLITTERS = {
    f"{_FILTERS}.gopher_quality_filter.split_into_words": lambda text, _: regex_words(text),
    f"{_FILTERS}.gopher_repetition_filter.split_into_words": lambda text, _: regex_words(text),
    f"{_FILTERS}.fineweb_quality_filter.split_into_words": lambda text, _: regex_words(text),
    f"{_FILTERS}.c4_filters.split_into_sentences": lambda text, _: regex_sentences(text),
}
"""datatrove's functions that split texts, and the functions that replace them for the same words."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = common.make_parser(__doc__, megabytes=2, rounds=5)
    args = parser.parse_args(argv)
    texts = _texts(args.megabytes << 20)
    n_bytes = sum(len(text.encode()) for text in texts)
    kinds = ["ours", "datatrove, same words"]
    if find_spec("spacy") is not None:
        kinds.append("datatrove, own words")
    rows, values = [], []
    for name in OURS:
        runs = {kind: _run(name, kind) for kind in kinds}
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for order in common.rounds(kinds, args.rounds):
            for kind in order:
                seconds[kind].append(common.wall_seconds(runs[kind], texts))
        for kind in kinds:
            speeds = [n_bytes / 2**20 / each for each in seconds[kind]]
            factor = common.ratio(seconds[kind], seconds["ours"])
            rows.append({"rule": name, "side": kind, "MiB/s": common.spread(speeds), "time / ours": f"{factor:.2f}"})
            values.append({"rule": name, "side": kind, "seconds": seconds[kind], "ratio_to_ours": factor})
    common.show_table(rows)
    common.write_json(args.json, common.description(args) | {"n_bytes": n_bytes, "rules": values})
    return 0


def _texts(n_bytes: int) -> list[str]:
    found, size = [], 0
    for text in library():
        found.append(text)
        size += len(text.encode())
        if size >= n_bytes:
            break
    return found


def _run(name: str, kind: str) -> Callable[[list[str]], None]:
    """A function that applies the rule to all texts."""
    if kind == "ours":
        judge = OURS[name]().judge()

        def run_ours(texts: list[str]) -> None:
            for text in texts:
                judge(Document(0, "", "", 0, text, 0, {}))

        return run_ours
    filter = _datatrove(name)

    def run(texts: list[str]) -> None:
        from datatrove.data import Document as Theirs

        patches = [patch(target, new) for target, new in _SPLITTERS.items()] if kind.endswith("same words") else []
        for each in patches:
            each.start()
        try:
            for text in texts:
                filter.filter(Theirs(text=text, id=""))
        finally:
            for each in patches:
                each.stop()

    return run


def _datatrove(name: str) -> Any:
    from datatrove.pipeline import filters

    return {
        "gopher_quality": filters.GopherQualityFilter,
        "gopher_repetition": filters.GopherRepetitionFilter,
        "fineweb_quality": filters.FineWebQualityFilter,
        "c4_quality": filters.C4QualityFilter,
    }[name]()


if __name__ == "__main__":
    sys.exit(main())
