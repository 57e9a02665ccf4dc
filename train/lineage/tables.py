"""The answers about a run's documents as text and as JSON values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.base.problems import listed
from train.lineage.questions import Found, RowOfStep, StreamSeen, Trace, by_license
from train.lineage.run import TracedRun

MOST = 200
"""Maximum number of rows of a table."""
_STEPS = 10
"""Maximum number of steps that are listed for a document."""


def notes(run: TracedRun) -> Iterator[str]:
    """What the answers do not include."""
    config = run.record.start.get("config")
    load_path = config.get("load_path") if isinstance(config, Mapping) else None
    if load_path is not None:
        yield f"the run started from {load_path}: the data on which these weights were trained is not included"
    if run.history.first_batch:
        yield f"the run began at step {run.history.first_batch + 1}: earlier steps belong to another run"
    if run.record.unreadable:
        yield f"{run.record.unreadable} lines of record.jsonl cannot be read"


def steps_table(rows: Sequence[RowOfStep]) -> list[str]:
    body = [(each.step, each.status, each.stream or "-", each.row, _grouped(each.documents)) for each in rows]
    return table(("step", "status", "stream", "row", "documents"), body)


def _grouped(documents: Sequence[str]) -> str:
    """The documents by file, as `PATH:POSITION,POSITION`."""
    positions: dict[str, list[str]] = {}
    for document in documents:
        path, _, position = document.rpartition(":")
        positions.setdefault(path, []).append(position)
    return " ".join(f"{path}:{','.join(of_path)}" for path, of_path in positions.items())


def trace_tables(found: Trace) -> list[str]:
    """The steps of each reference, and the checkpoints that saw at least one of them."""
    body = [(each.reference, each.documents, each.rows, len(each.trained), _steps(each)) for each in found.found]
    lines = table(("document", "found", "rows", "steps", "trained at steps"), body)
    missing = [each.reference for each in found.found if not each.documents]
    if missing:
        lines.append(
            f"not found in the rows: {len(missing)} of {len(found.found)} ({listed(missing)}): either preparation "
            "dropped the document, or no document begins at this position"
        )
    n = len(found.found)
    body = [(Path(each.checkpoint).name, each.step, f"{each.references} of {n}") for each in found.checkpoints]
    lines += ["", *table(("checkpoint", "step", "documents seen"), body)]
    newest = found.newest_without
    where = newest.checkpoint if newest is not None else "none" if found.checkpoints else "the run has no checkpoints"
    return [*lines, "", f"newest checkpoint that saw none of them: {where}"]


def _steps(found: Found) -> str:
    steps = found.trained
    text = " ".join(map(str, steps[:_STEPS])) + (f" and {len(steps) - _STEPS} more" if len(steps) > _STEPS else "")
    others: dict[str, int] = {}
    for status in {(draw.step, draw.status) for draw in found.draws if draw.status != "trained"}:
        others[status[1]] = others.get(status[1], 0) + 1
    return "; ".join(filter(None, [text, *(f"{count} {status}" for status, count in sorted(others.items()))])) or "-"


def seen_tables(streams: Sequence[StreamSeen]) -> list[str]:
    """Rows, documents and tokens by stream, by license and by file."""
    body = [
        (
            each.stream or "-",
            f"{each.rows:,}",
            f"{each.epochs:.2f}",
            f"{sum(file.documents for file in each.files):,}",
            _tokens([file.tokens for file in each.files]),
        )
        for each in streams
    ]
    lines = table(("stream", "rows", "epochs", "documents", "tokens"), body)
    licenses = [
        (name, f"{each['documents']:,}", _tokens([each["tokens"]]))
        for name, each in sorted(by_license(streams).items())
    ]
    lines += ["", *table(("license", "documents", "tokens"), licenses)]
    files = [(each, file) for each in streams for file in each.files]
    files.sort(key=lambda pair: -pair[1].pieces)
    body = [
        (file.name, each.stream or "-", f"{file.documents:,} of {file.n_documents:,}", _tokens([file.tokens]))
        for each, file in files
    ]
    return [*lines, "", *table(("file", "stream", "documents", "tokens"), body)]


def _tokens(tokens: Sequence[int | None]) -> str:
    known = [each for each in tokens if each is not None]
    return f"{sum(known):,}" if len(known) == len(tokens) else "unknown"


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Left-aligned columns, with at most MOST rows. The last column is not padded."""
    shown = [list(map(str, row)) for row in rows[:MOST]]
    widths = [max(map(len, cells)) for cells in zip(columns, *shown, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (columns, *shown)
    ]
    if len(rows) > MOST:
        lines.append(f"... and {len(rows) - MOST:,} more rows: use --json to list all rows")
    return lines


def about(run: TracedRun) -> dict[str, Any]:
    """The run, as JSON values."""
    return {
        "run": run.name,
        "folder": run.place,
        "first_step": run.history.first_batch + 1,
        "last_step": run.history.n_batches,
        "notes": [*notes(run)],
    }


def trace_json(found: Trace) -> dict[str, Any]:
    newest = found.newest_without
    return {
        "documents": [{**asdict(each), "trained": each.trained} for each in found.found],
        "checkpoints": [asdict(each) for each in found.checkpoints],
        "newest_without": newest.checkpoint if newest is not None else None,
    }


def seen_json(streams: Sequence[StreamSeen]) -> dict[str, Any]:
    return {"streams": [asdict(each) for each in streams], "licenses": by_license(streams)}
