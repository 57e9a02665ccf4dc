"""The tables of the page."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data.base.durations import Clock
from data.base.sizes import format_bytes
from data.inspection.duplicates import Matches
from data.inspection.oddity import STATISTICS, Texts
from data.inspection.page.source import InspectedSource
from data.inspection.page.texts import format_statistic
from data.mixing.row_plan import RowPlan
from data.pages.table import Table

MOST_FILES = 200
"""Maximum number of files that are listed for each source."""
UNKNOWN = "unknown"


def summary(sources: Sequence[InspectedSource]) -> Table:
    columns = ["source", "rows", "documents", "tokens", "trained", "fill", "characters per token", "files", "size"]
    rows = []
    for source in sources:
        tokens, about = _whole(source, "tokens")
        trained, _ = _whole(source, "trained_tokens")
        positions = source.rows.n_rows * source.rows.max_seq_len
        inputs = _inputs(source)
        sizes = [each["bytes"] for each in inputs if isinstance(each.get("bytes"), int)]
        rows.append(
            [
                source.name,
                f"{source.rows.n_rows:,}",
                _count(_n_documents(source)),
                f"{about}{tokens:,}",
                f"{about}{trained:,} ({trained / max(tokens, 1):.1%})",
                f"{tokens / max(positions, 1):.1%}",
                _characters_per_token(source.texts),
                f"{len(inputs):,}" if inputs else UNKNOWN,
                format_bytes(sum(sizes)) if sizes else UNKNOWN,
            ]
        )
    return Table(columns=columns, rows=rows)


def _whole(source: InspectedSource, name: str) -> tuple[int, str]:
    """The number of tokens in all rows; and "about " if it is estimated from the rows that were read, because the
    folder has no manifest."""
    read, known = getattr(source.survey, name), getattr(source.rows, name)
    if source.is_complete or known is not None:
        return (read if source.is_complete else known), ""
    return round(read * source.rows.n_rows / max(source.survey.n_rows, 1)), "about "


def _n_documents(source: InspectedSource) -> int | None:
    if source.is_complete:
        return source.survey.n_documents
    kept = source.manifest.get("examples_kept")
    return kept if isinstance(kept, int) else None


def _characters_per_token(texts: Texts) -> str:
    return f"{texts.characters / texts.plain_tokens:.2f}" if texts.plain_tokens else UNKNOWN


def _count(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number:,}"


def _inputs(source: InspectedSource) -> list[dict[str, Any]]:
    inputs = source.manifest.get("inputs")
    return [each for each in inputs if isinstance(each, dict)] if isinstance(inputs, list) else []


def files(source: InspectedSource) -> Table:
    """The files from which the rows were prepared, in their order."""
    inputs, rows = _inputs(source), []
    for each in inputs[:MOST_FILES]:
        name = str(each.get("path", UNKNOWN))
        if "dataset" in each:
            name = f"{each['dataset']}@{str(each.get('revision', ''))[:12]}: {name}"
        n_bytes = each.get("bytes")
        rows.append([name, format_bytes(n_bytes) if isinstance(n_bytes, int) else UNKNOWN])
    if len(inputs) > MOST_FILES:
        rows.append([f"... and {len(inputs) - MOST_FILES:,} more files", ""])
    return Table(columns=["file", "size"], rows=rows)


def losses(sources: Sequence[InspectedSource]) -> Table:
    """The records and tokens that preparation kept, truncated and dropped, with their shares."""
    parts = "kept", "truncated", "dropped"
    columns = ["source", *(text for of in ("records", "tokens") for text in (of, *(f"{of} {part}" for part in parts)))]
    rows = []
    for source in sources:
        manifest = source.manifest
        records, tokens = manifest.get("rows_in"), manifest.get("tokens_in")
        if not isinstance(records, int) or not isinstance(tokens, int):
            rows.append([source.name, *[UNKNOWN] * 8])
            continue
        counts = manifest.get("examples_kept"), manifest.get("examples_truncated"), _n_dropped(manifest)
        of_tokens = (manifest.get(f"tokens_{name}") for name in parts)
        rows.append(
            [
                source.name,
                f"{records:,}",
                *(_with_share(count, records) for count in counts),
                f"{tokens:,}",
                *(_with_share(count, tokens) for count in of_tokens),
            ]
        )
    return Table(columns=columns, rows=rows)


def _n_dropped(manifest: dict[str, Any]) -> int:
    return sum(_counts(manifest.get("dropped")).values())


def reasons(sources: Sequence[InspectedSource]) -> Table:
    """The number of records that preparation dropped for each reason, and the number of bad rows of each kind."""
    rows = []
    for source in sources:
        records = source.manifest.get("rows_in")
        bad = {f"bad row: {kind}": count for kind, count in _counts(source.manifest.get("bad_rows")).items()}
        for reason, count in (_counts(source.manifest.get("dropped")) | bad).items():
            if not bad or reason != "bad rows":
                rows.append([source.name, reason, *_count_and_share(count, records)])
    return Table(columns=["source", "reason", "records", "share"], rows=rows, left=2)


def _with_share(count: Any, total: int) -> str:
    return " ".join(f"({text})" if n else text for n, text in enumerate(_count_and_share(count, total)) if text)


def _count_and_share(count: Any, total: Any) -> list[str]:
    if not isinstance(count, int):
        return [UNKNOWN, ""]
    is_share = isinstance(total, int) and total and count
    return [f"{count:,}", f"{count / total:.2%}" if is_share else ""]


def _counts(value: Any) -> dict[str, int]:
    return {str(name): n for name, n in value.items() if isinstance(n, int)} if isinstance(value, dict) else {}


def use_of_streams(plan: RowPlan, clock: Clock, n_rows: dict[str, int]) -> Table:
    """The rows that the run draws from each stream."""
    assert clock.max_batches is not None
    taken_S = plan.counts(clock.max_batches)
    tokens_S = plan.of_tokens(taken_S) if taken_S.sum() else np.zeros(len(taken_S))
    rows = [
        [
            name or "train",
            f"{n_rows[name]:,}",
            f"{taken:,}",
            f"{taken / n_rows[name]:.2f}",
            f"{taken / max(taken_S.sum(), 1):.1%}",
            f"{share:.1%}",
        ]
        for name, taken, share in zip(plan.names, taken_S.tolist(), tokens_S.tolist(), strict=True)
    ]
    columns = ["stream", "rows", "rows drawn", "epochs", "share of rows", "share of tokens"]
    return Table(columns=columns, rows=rows)


def stages(plan: RowPlan, clock: Clock) -> Table:
    """The shares of the streams in each stage. A ramp has the shares at its start and at its end."""
    assert clock.max_batches is not None
    rows = []
    for number, (name, first, end) in enumerate(plan.stages()):
        stop = clock.max_batches if end is None else min(end, clock.max_batches)
        start, last = plan.start_of(number).tokens.tolist(), plan.end_of(number).tokens.tolist()
        shares = [_change(a, b) for a, b in zip(start, last, strict=True)]
        if first < stop:
            tokens = (stop - first) * clock.tokens_per_batch
            rows.append([name or "(one mix)", f"{first:,} to {stop:,}", f"{tokens:,}", *shares])
    columns = ["stage", "batches", "tokens with padding", *(name or "train" for name in plan.names)]
    return Table(columns=columns, rows=rows)


def _change(start: float, end: float) -> str:
    texts = f"{start:.1%}", f"{end:.1%}"
    return texts[0] if texts[0] == texts[1] else " → ".join(texts)


def bins(found: Sequence[tuple[float, float, int]], what: str, unit: str, form: str) -> Table:
    """The numbers of a histogram."""
    total = sum(count for *_, count in found)
    rows = [[f"{low:{form}} to {high:{form}}", f"{count:,}", f"{count / total:.1%}"] for low, high, count in found]
    return Table(columns=[unit, what, "share"], rows=rows)


def medians(sources: Sequence[InspectedSource]) -> Table:
    """The median of each statistic from which the scores of documents are computed."""
    rows = []
    for source in sources:
        if np.isfinite(source.texts.values).any():
            values = source.texts.medians().tolist()
            rows.append([source.name, *(format_statistic(n, value) for n, value in enumerate(values))])
    return Table(columns=["median of", *STATISTICS], rows=rows)


def copies(found: Sequence[tuple[InspectedSource, Matches]]) -> Table:
    """The numbers of documents that are copies or near-duplicates of an earlier document."""
    rows = [[source.name, *_matched(source, matches)] for source, matches in found]
    return Table(columns=_MATCHED, rows=rows)


def overlaps(found: Sequence[tuple[InspectedSource, InspectedSource, Matches]]) -> Table:
    """The numbers of evaluation documents that are also in the training data."""
    rows = [[asked.name, known.name, *_matched(asked, matches)] for asked, known, matches in found]
    return Table(columns=[_MATCHED[0], "compared with", *_MATCHED[1:]], rows=rows, left=2)


_MATCHED = ["documents of", "documents", "copies", "share", "near-duplicates", "share"]


def _matched(source: InspectedSource, found: Matches) -> Iterator[str]:
    n = len(source.survey.hashes)
    yield f"{n:,}"
    for pairs in (found.exact, found.near):
        yield f"{len(pairs):,}"
        yield f"{len(pairs) / max(n, 1):.1%}"
