"""The tables of a report, which are also shown without JavaScript."""

import datetime
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data.base.durations import format_seconds
from data.base.sizes import format_bytes
from data.pages.table import Table
from train.report import configs, timeline
from train.report.charts import streams_of
from train.report.experts import LAYER_METRICS, layer_rows
from train.report.figures import short, state
from train.report.reading.run import EVAL_LOSS, EVALUATIONS, LOSS, Run, read_config

_ROWS = 25
"""Maximum number of rows in the table of steps."""
MOST_SAMPLES = 40
_STEP_COLUMNS = (
    ("loss", LOSS, ".4f"),
    ("load-balancing loss", "loss/train/load_balancing", ".3g"),
    ("lr", "lr", ".2e"),
    ("gradient norm", "l2_norm/grad/global", ".3g"),
    ("tokens/s", "throughput/real_tokens_per_sec", ",.0f"),
    ("MFU", "throughput/device/mfu", ".1%"),
    ("peak GiB", "memory/peak_gib", ".3g"),
)
_OVERVIEW = (
    ("rows", "rows"),
    ("documents", "documents"),
    ("tokens", "tokens"),
    ("trained_tokens", "trained on"),
    ("padding", "padding"),
    ("examples_truncated", "documents truncated"),
)
_SPENT = ("train", "data", "eval", "save", "generate", "startup", "other")
_SPENT_NAMES = {
    "train": "training",
    "eval": "evaluation",
    "save": "saving",
    "generate": "generation",
    "data": "waiting for data",
    "startup": "starting",
}


def steps(run: Run) -> Table:
    """Return the values of the charts at evenly spaced steps."""
    columns = [column for column in _STEP_COLUMNS if column[1] in run.metrics.series]
    places = np.unique(np.linspace(0, max(0, len(run.metrics.steps) - 1), _ROWS).astype(int))
    shown = run.metrics.steps[places] if run.metrics.steps.size else []
    rows = [[f"{step:,}", *(_value_at(run, name, step, form) for _, name, form in columns)] for step in shown]
    return Table(columns=["step", *(name for name, _, _ in columns)], rows=rows, left=0)


def evaluations(run: Run) -> Table:
    series = run.metrics.matching(EVALUATIONS)
    names = sorted(series, key=lambda name: (f"{EVALUATIONS}{name}" != EVAL_LOSS, name))
    at = sorted({int(step) for each in series.values() for step in each.steps})
    kept = [*at[:1], *at[1:][-_ROWS:]]
    rows = [[f"{step:,}", *(_value_at(run, f"{EVALUATIONS}{name}", step, ".4f") for name in names)] for step in kept]
    return Table(columns=["step", *names], rows=rows, left=0)


def streams(run: Run) -> Table:
    columns = ("stream", "loss", "tokens", "passes", "share of tokens", "planned now")
    metrics = ("loss", "tokens", "passes", "planned_token_share")
    names = streams_of(run)
    contributed = {name: run.metrics.last(f"streams/{name}/tokens") or 0.0 for name in names}
    total = sum(contributed.values()) or 1.0
    rows = []
    for name in names:
        loss, tokens, passes, planned = (run.metrics.last(f"streams/{name}/{metric}") for metric in metrics)
        numbers = [_form(loss, ".4f"), short(tokens or 0), _form(passes, ".2f"), f"{contributed[name] / total:.1%}"]
        rows.append([name, *numbers, _form(planned, ".1%")])
    return Table(columns=columns, rows=rows)


def layers(run: Run) -> Table:
    names, rows = layer_rows(run)
    columns = ["layer", *(LAYER_METRICS[name] for name in names)]
    return Table(columns=columns, rows=[[_form(value, ".4g") for value in row] for row in rows], left=0)


def loads(data: dict[str, Any] | None) -> Table:
    """Return the expert loads of the newest measurement. A load of 1 is balanced."""
    if data is None:
        return Table(columns=[], rows=[])
    newest = data["loads"][-1]
    rows = [
        [str(layer), *("" if load is None else f"{load / 100:.2f}" for load in row)]
        for layer, row in zip(data["layers"], newest, strict=True)
    ]
    return Table(columns=["layer", *(str(expert) for expert in range(len(newest[0])))], rows=rows, left=0)


def events(run: Run) -> Table:
    entries = timeline.shown_events(run)
    rows = [
        [
            f"{each.batch:,}",
            _clock(each.time),
            timeline.kind(each) + (" (before a resume)" if each.superseded else ""),
            timeline.text(each),
        ]
        for each in reversed(entries)
    ]
    return Table(columns=["step", "time (UTC)", "event", "what"], rows=rows, left=4)


def event_counts(run: Run) -> str:
    found = ", ".join(f"{kind}: {number}" for kind, number in timeline.counts(run).most_common())
    hidden = len(run.record.events()) - len(timeline.shown_events(run))
    listed = f"Only {timeline.MOST} events are shown; checkpoints and older events are omitted"
    return f"{found}. {listed}." if hidden else found


def data_overview(run: Run) -> Table:
    """Return a table with a row for each stream of each loader."""
    rows = []
    for name, manifest in _manifests(run):
        dropped = manifest.get("dropped")
        drops = sum(n for n in dropped.values() if isinstance(n, int)) if isinstance(dropped, dict) else None
        counts = [manifest.get(key) for key, _ in _OVERVIEW]
        rows.append([name, *(f"{n:,}" if isinstance(n, int) else "" for n in (*counts, drops))])
    return Table(columns=["stream", *(title for _, title in _OVERVIEW), "dropped"], rows=rows)


def data(run: Run) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the name and the manifest of each stream of each loader."""
    return [(name, [*_manifest(manifest)]) for name, manifest in _manifests(run)]


def environment(run: Run) -> list[tuple[str, str]]:
    start = run.record.start
    git = start.get("git")
    found = [
        ("command", start.get("command")),
        ("run id", start.get("run_id")),
        ("ranks", f"{start['world_size']} on {start.get('nodes', '?')} node(s)" if "world_size" in start else None),
        ("device", start.get("device")),
        ("precision", start.get("precision")),
        ("git", _git(git) if isinstance(git, dict) else None),
    ]
    for key, value in configs.flat(start.get("environment") or {}).items():
        is_size = key.endswith("_bytes") and isinstance(value, int)
        found.append((key.removesuffix("_bytes"), format_bytes(value, down=True) if is_size else value))
    return [(name, str(value)) for name, value in found if name and value not in (None, "")]


def versions(run: Run) -> list[tuple[str, str]]:
    found = run.record.start.get("versions")
    return [(str(name), str(version)) for name, version in found.items()] if isinstance(found, dict) else []


def samples(run: Run) -> list[tuple[int, list[tuple[str, str]]]]:
    """Return the step and the (prompt, text) pairs of each set of samples, newest first."""
    found = []
    for entry in reversed(run.record.samples):
        if not entry.superseded:
            pairs = [each for each in entry.values["samples"] if isinstance(each, dict)]
            found.append((entry.batch, [(str(each.get("prompt", "")), str(each.get("text", ""))) for each in pairs]))
    return found[:MOST_SAMPLES]


def time_spent(run: Run) -> list[tuple[str, str, float]]:
    """Return each activity with its duration and its share of the total."""
    seconds = {name: series.last for name, series in run.metrics.matching("seconds/").items()}
    total = sum(seconds.values()) or 1.0
    names = [name for name in _SPENT if name in seconds] + sorted(seconds.keys() - set(_SPENT))
    return [(_SPENT_NAMES.get(name, name), format_seconds(seconds[name]), seconds[name] / total) for name in names]


def runs(several: Sequence[Run]) -> Table:
    """Return a table with a row for each run."""
    columns = ["run", "folder", "state", "step", "tokens", "train loss", "evaluation loss", "tokens/s", "peak GiB"]
    rows = []
    for run in several:
        tokens = short(float(run.metrics.tokens[-1])) if run.metrics.tokens.size else ""
        names = (
            (LOSS, ".4f"),
            (EVAL_LOSS, ".4f"),
            ("throughput/real_tokens_per_sec", ",.0f"),
            ("memory/peak_gib", ".3g"),
        )
        numbers = [_form(run.metrics.last(name), form) for name, form in names]
        rows.append([run.name, str(run.files.folder), state(run), f"{run.last_step:,}", tokens, *numbers])
    return Table(columns=columns, rows=rows, left=3)


def config_differences(several: Sequence[Run]) -> Table:
    rows = configs.differences([read_config(run) for run in several])
    return Table(columns=["key", *(run.name for run in several)], rows=rows, left=1 + len(several))


def _manifests(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    loaders = run.record.start.get("data")
    for loader, found in loaders.items() if isinstance(loaders, dict) else ():
        for stream, manifest in found.items() if isinstance(found, dict) else ():
            if isinstance(manifest, dict):
                yield f"{loader}{f', stream {stream}' if stream else ''}", manifest


def _manifest(manifest: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in configs.flat(manifest).items():
        name = key.replace("_", " ")
        if key.startswith("dropped."):
            name = f"dropped: {key.removeprefix('dropped.')}"
        yield name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else configs.shown(value)


def _git(git: dict[str, Any]) -> str:
    dirty = ", with uncommitted changes" if git.get("dirty") else ""
    return f"{str(git.get('commit', ''))[:12]} on {git.get('branch') or 'no branch'}{dirty}"


def _value_at(run: Run, name: str, step: int, form: str) -> str:
    series = run.metrics.series[name]
    place = int(np.searchsorted(series.steps, step))
    known = place < len(series.steps) and series.steps[place] == step
    return _form(float(series.values[place]), form) if known else ""


def _form(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _clock(time: float | None) -> str:
    return "" if time is None else f"{datetime.datetime.fromtimestamp(time, datetime.UTC):%Y-%m-%d %H:%M:%S}"
