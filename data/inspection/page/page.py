"""Write the page about the data of a config."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.base.durations import Clock
from data.inspection.duplicates import Matches, duplicates, overlap
from data.inspection.minhash import ALIKE
from data.inspection.oddity import LEAST_TOKENS, special_ids
from data.inspection.page import charts, tables, texts
from data.inspection.page.source import InspectedSource
from data.inspection.page.tokens import show_row
from data.inspection.planned_shares import curves
from data.mixing.row_plan import RowPlan
from data.pages import page
from data.pages.charts import chart
from data.tokenization.tokenizer import Tokenizer

_ASSETS = Path(__file__).parent / "assets"
MOST_CHARTS = 12
"""Maximum number of sources with charts; tables contain all sources."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the page shows."""

    title: str
    config: str
    """The config file, with its overrides."""
    seed: int
    """Seed of the example rows."""
    n_rows: int
    """Number of example rows of each source."""
    first: int | None = None
    """The first example row. None: the example rows are drawn from the rows that were read."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """The row plan of the run."""

    rows: RowPlan
    clock: Clock


def write_page(
    options: Options,
    sources: Sequence[InspectedSource],
    plan: Plan | str,
    tokenizer: Tokenizer,
    output: Path,
) -> None:
    """Write the page. The names of the sources are those of the streams after `train.` or `eval.`, or `train` and
    `eval`. `plan` is the reason if there is no plan. Raises ConfigError if the file cannot be written."""
    page.write(render(options, sources, plan, tokenizer), output, hint="specify another file with --html")


def render(options: Options, sources: Sequence[InspectedSource], plan: Plan | str, tokenizer: Tokenizer) -> str:
    mixture = None if isinstance(plan, str) else _mixture(plan, sources)
    sections = [_section(source, n, options, tokenizer) for n, source in enumerate(sources)]
    found = [(source, duplicates(source.survey)) for source in sources]
    shared = [*_overlaps(sources)]
    values = {
        "title": options.title,
        "config": options.config,
        "sources": sections,
        "summary": tables.summary(sources),
        "losses": tables.losses(sources),
        "reasons": tables.reasons(sources),
        "is_complete": all(source.is_complete for source in sources),
        "no_plan": plan if isinstance(plan, str) else "",
        "mixture": mixture,
        "seed": options.seed,
        "first": options.first,
        "medians": tables.medians(sources),
        "least_tokens": LEAST_TOKENS,
        "alike": f"{ALIKE:.0%}",
        "copies": tables.copies(found),
        "copied": [_matches(source.name, source, source, matches, tokenizer) for source, matches in found],
        "overlaps": tables.overlaps(shared),
        "overlapping": [
            _matches(f"{asked.name} in {known.name}", asked, known, matches, tokenizer)
            for asked, known, matches in shared
        ],
        "uncompared": [*_uncompared(sources)],
        "hidden_charts": max(0, len(sources) - MOST_CHARTS),
    }
    specs = [each for section in sections for each in section["charts"]] + (mixture["charts"] if mixture else [])
    return page.render(_ASSETS, "data.html", values, {"charts": {each["key"]: each["spec"] for each in specs}})


def _section(source: InspectedSource, number: int, options: Options, tokenizer: Tokenizer) -> dict[str, Any]:
    """The template values of one source."""
    special = special_ids(tokenizer)
    lengths, fills = charts.length_bins(source.survey.lengths), charts.fill_bins(source.survey.row_tokens)
    shown = [
        chart(f"lengths-{number}", f"{source.name}: lengths of the documents", charts.length_chart(source)),
        chart(f"fill-{number}", f"{source.name}: fill of the rows", charts.fill_chart(source)),
    ]
    return {
        "name": source.name,
        "part": source.part,
        "n_rows": source.rows.n_rows,
        "folder": str(source.rows.folder),
        "files": tables.files(source),
        "charts": shown if number < MOST_CHARTS else [],
        "lengths": tables.bins(lengths, "documents", "tokens", ",.0f"),
        "fills": tables.bins(fills, "rows", "share of the positions with tokens", ".0%"),
        "rows": [show_row(n, source.rows, tokenizer, special) for n in _example_rows(source, number, options)],
        "longest": texts.longest(source, tokenizer),
        "oddest": texts.oddest(source, tokenizer),
    }


def _example_rows(source: InspectedSource, number: int, options: Options) -> list[int]:
    if options.first is not None:
        return [*range(options.first, min(options.first + options.n_rows, source.rows.n_rows))]
    count = min(options.n_rows, len(source.numbers))
    drawn = np.random.default_rng([options.seed, number]).choice(len(source.numbers), count, replace=False)
    return [source.numbers[n] for n in sorted(drawn.tolist())]


def _mixture(plan: Plan, sources: Sequence[InspectedSource]) -> dict[str, Any]:
    total = plan.clock.max_batches
    assert total is not None
    n_rows = {source.name.removeprefix("train").removeprefix("."): source.rows.n_rows for source in sources}
    shown = []
    if total and (len(plan.rows.names) > 1 or len(plan.rows.stages()) > 1):
        title = "Planned share of the tokens of each stream, without padding; dashed lines: starts of stages"
        shown.append(
            chart("mixture", title, charts.mixture_chart(plan.rows, curves(plan.rows, total), total), wide=True)
        )
    return {
        "charts": shown,
        "streams": tables.use_of_streams(plan.rows, plan.clock, n_rows),
        "stages": tables.stages(plan.rows, plan.clock),
        "batches": total,
        "notes": plan.rows.notes,
    }


def _overlaps(sources: Sequence[InspectedSource]) -> Iterator[tuple[InspectedSource, InspectedSource, Matches]]:
    """Each evaluation source with each training stream."""
    for asked in sources:
        for known in sources:
            if known.name.startswith("train") and asked.name.startswith("eval"):
                yield asked, known, overlap(known.survey, asked.survey)


def _matches(
    title: str, asked: InspectedSource, known: InspectedSource, found: Matches, tokenizer: Tokenizer
) -> dict[str, Any]:
    return {
        "title": title,
        "exact": texts.exact_matches(asked, known, found, tokenizer),
        "near": texts.near_matches(asked, known, found, tokenizer),
    }


def _uncompared(sources: Sequence[InspectedSource]) -> Iterator[str]:
    for source in sources:
        n, total = len(source.survey.hashes), source.survey.n_documents
        if n < total:
            yield f"{source.name}: only the first {n:,} of the {total:,} documents that were read are compared."
