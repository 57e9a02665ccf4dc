"""Compares the quality rules of a curation with datatrove's filters: CPU time per MB of the same texts, and the share
of equal decisions.

The texts are the documentation of Python's standard library. Each filter of datatrove runs with the words and
sentences of our rules and, if spaCy is installed, with its own. A filter of datatrove ends at the first threshold that
is not met, while our rules always compute all scores.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import ast
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

from data.curation.base.document import Document
from data.curation.quality.c4_quality import C4Quality
from data.curation.quality.fineweb_quality import FineWebQuality
from data.curation.quality.gopher_quality import GopherQuality
from data.curation.quality.gopher_repetition import GopherRepetition
from data.curation.quality.splitters import regex_sentences, regex_words
from scripts.bench import common
from scripts.bench.stdlib_text import library

RULES = {
    "GopherQualityFilter": GopherQuality(),
    "GopherRepetitionFilter": GopherRepetition(),
    "FineWebQualityFilter": FineWebQuality(),
    "C4QualityFilter": C4Quality(),
}
_FILTERS = "datatrove.pipeline.filters"
_SPLITTERS = {
    f"{_FILTERS}.gopher_quality_filter.split_into_words": regex_words,
    f"{_FILTERS}.gopher_repetition_filter.split_into_words": regex_words,
    f"{_FILTERS}.fineweb_quality_filter.split_into_words": regex_words,
    f"{_FILTERS}.c4_filters.split_into_sentences": regex_sentences,
}


def main(argv: Sequence[str] | None = None) -> int:
    args = common.make_parser(__doc__, documents=500, rounds=3).parse_args(argv)
    texts = documentation(args.documents)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    print(f"{len(texts)} documents, {megabytes:.2f} MB")
    rows, figures = [], {}
    for name in RULES:
        times, kept = measured(name, texts, args.rounds)
        per_mb = {variant: [seconds / megabytes for seconds in values] for variant, values in times.items()}
        figures[name] = {"seconds_per_mb": per_mb, "agreement": {}}
        for variant, values in per_mb.items():
            same = sum(a == b for a, b in zip(kept[variant], kept["ours"], strict=True)) / len(texts)
            figures[name]["agreement"][variant] = same
            rows.append(
                {
                    "rule, variant": f"{type(RULES[name]).__name__}, {variant}",
                    "s/MB": common.median(values, 3),
                    "min-max": common.spread(values, 3),
                    "time / ours": f"{common.ratio(values, per_mb['ours']):.2f}",
                    "same decision": f"{same:.2%}",
                }
            )
    common.show_table(rows)
    common.write_json(args.json, common.description(args) | {"megabytes": megabytes, "rules": figures})
    return 0


def documentation(n_documents: int) -> list[str]:
    """Docstrings of at least 300 characters."""
    found: dict[str, None] = {}
    for source in library():
        try:
            nodes = ast.walk(ast.parse(source))
        except (SyntaxError, ValueError):  # tests of the parser
            continue
        for node in nodes:
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if len(text) >= 300:
                    found[text] = None
        if len(found) >= n_documents:
            break
    return list(found)[:n_documents]


def measured(name: str, texts: list[str], n_rounds: int) -> tuple[dict[str, list[float]], dict[str, list[bool]]]:
    """CPU seconds and decisions of each variant."""
    import datatrove.pipeline.filters as filters
    from datatrove.data import Document as TheirDocument

    judge, theirs = RULES[name].judge(), getattr(filters, name)()

    def ours(text: str) -> bool:
        return judge(Document(0, "", "", 0, text, 0, {})).reason is None

    def with_datatrove(text: str) -> bool:
        return theirs.filter(TheirDocument(text=text, id="")) is True

    variants: dict[str, Callable[[str], bool]] = {"ours": ours, "datatrove, same words": with_datatrove}
    if find_spec("spacy") is not None:
        variants["datatrove, spaCy"] = with_datatrove
    kept: dict[str, list[bool]] = {}

    def step(variant: str) -> float:
        with same_words(variant == "datatrove, same words"):
            began = time.process_time()
            kept[variant] = [variants[variant](text) for text in texts]
            return time.process_time() - began

    return common.alternated(list(variants), n_rounds, step, lambda: None), kept


@contextmanager
def same_words(same: bool) -> Iterator[None]:
    """Within the block, datatrove's filters use our words and sentences."""
    if not same:
        yield
        return

    def ignoring_language(split: Callable[[str], list[str]]) -> Callable[[str, Any], list[str]]:
        return lambda text, language: split(text)

    patches = [patch(target, ignoring_language(split)) for target, split in _SPLITTERS.items()]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


if __name__ == "__main__":
    sys.exit(main())
