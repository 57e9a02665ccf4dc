"""Compare two checkpoints: their manifests, configs, run states and tensors."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from data.base.errors import ConfigError
from train.checkpoint.load import Checkpoint, open_checkpoint
from train.checkpoint.save_folder import check_identity, saved_config, saved_values
from train.checkpoint.state import RunState, state_if_any
from train.checkpoint.storage.files import verify_files
from train.checkpoint.storage.manifest import CONFIG, Manifest
from train.inspection.found import read_errors_named
from train.inspection.tensors import TensorsCompared, compare_tensors
from train.resume.differences import differences, shown

_WALL_CLOCK = "_wct"
"""Suffix of the names of Composer's durations."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The differences between two checkpoints, as lists of lines. The checkpoints are equal if all differences are in
    `unimportant`."""

    manifest: list[str]
    config: list[str]
    state: list[str]
    tensors: TensorsCompared
    unimportant: list[str]
    """The times and durations that differ, with their names and values. Such values differ even between two runs with
    the same results."""

    @property
    def equal(self) -> bool:
        return self.tensors.equal and not (self.manifest or self.config or self.state)


def compare(a: Path, b: Path, progress: Callable[[int], object] = lambda n_bytes: None) -> Comparison:
    """Compare two checkpoints. All data that is read is verified against the manifests. progress: see compare_tensors.

    Raises CorruptCheckpointError if a checkpoint is corrupt, and ConfigError if a file cannot be read.
    """
    first, second = _open(a), _open(b)
    states = state_if_any(first), state_if_any(second)
    return Comparison(
        manifest=[*_manifests(first.manifest, second.manifest)],
        config=_configs(a, b),
        state=[*_states(*states)],
        tensors=compare_tensors(first, second, progress),
        unimportant=[*_times(first.manifest, second.manifest), *_clocks(*states)],
    )


def _open(path: Path) -> Checkpoint:
    with read_errors_named(path):
        checkpoint = open_checkpoint(path)
        check_identity(path, checkpoint.manifest)
    return checkpoint


def _manifests(a: Manifest | None, b: Manifest | None) -> Iterator[str]:
    if a is None or b is None:
        if a is not b:
            yield f"manifest: {_there(a)} -> {_there(b)}"
        return
    for name in ("batch", "epoch", "run_id", "run_name", "world_size"):
        yield from _change(name, getattr(a, name), getattr(b, name))
    for name in dict.fromkeys([*a.versions, *b.versions]):
        yield from _change(f"versions.{name}", a.versions.get(name), b.versions.get(name))


def _times(a: Manifest | None, b: Manifest | None) -> Iterator[str]:
    if a is not None and b is not None:
        yield from _change("written", a.written, b.written)


def _configs(a: Path, b: Path) -> list[str]:
    with read_errors_named(a):
        for path in (a, b):
            if (path / CONFIG).is_file():
                verify_files(path, [CONFIG])
        try:
            first, second = saved_config(a), saved_config(b)
        except ConfigError as error:  # for example because of unknown keys
            if saved_values(a) == saved_values(b):
                return []
            return [f"cannot be compared by key: {str(error).splitlines()[0]}"]
    if first is None or second is None:
        return [] if first is second else [f"{(a if first is None else b).name} has no config"]
    found = differences(first, second)
    return [f"{each.key}: {shown(each.was)} -> {shown(each.now)}" for each in found]


def _states(a: RunState | None, b: RunState | None) -> Iterator[str]:
    if a is None or b is None:
        if a is not b:
            yield f"state: {_there(a)} -> {_there(b)}"
        return
    yield from _changes("timestamp", *({k: v for k, v in s.timestamp.items() if not _is_length(k)} for s in (a, b)))
    yield from _changes("position", _json(a.position), _json(b.position))
    yield from _change("rank_zero_seed", a.rank_zero_seed, b.rank_zero_seed)
    yield from _changes("callbacks", a.callbacks, b.callbacks)
    yield from _change("optimizer", a.optimizer, b.optimizer)
    yield from _groups(a, b)
    if len(a.random) != len(b.random):
        yield f"random: states of {len(a.random)} ranks -> states of {len(b.random)} ranks"
    elif ranks := [str(rank) for rank, pair in enumerate(zip(a.random, b.random, strict=True)) if pair[0] != pair[1]]:
        yield f"random: different states on ranks {', '.join(ranks[:8])}{' and others' if len(ranks) > 8 else ''}"


def _clocks(a: RunState | None, b: RunState | None) -> Iterator[str]:
    if a is not None and b is not None:
        yield from _changes("timestamp", *({k: v for k, v in s.timestamp.items() if _is_length(k)} for s in (a, b)))


def _is_length(key: str) -> bool:
    return key.endswith(_WALL_CLOCK)


def _groups(a: RunState, b: RunState) -> Iterator[str]:
    """Yield the changes to the optimizer's settings, with the name of the parameter group."""
    of_a, of_b = ({group.get("name", str(n)): group for n, group in enumerate(s.param_groups)} for s in (a, b))
    for name in dict.fromkeys([*of_a, *of_b]):
        was, now = of_a.get(name), of_b.get(name)
        if was is None or now is None:
            yield f"param_groups.{name}: {_there(was)} -> {_there(now)}"
            continue
        for key in dict.fromkeys([*was, *now]):
            if key != "params":
                yield from _change(f"param_groups.{name}.{key}", was.get(key), now.get(key))
            elif was[key] != now[key]:
                yield f"param_groups.{name}.params: {len(was[key])} parameters -> {len(now[key])} other parameters"


def _changes(key: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys([*a, *b]):
        yield from _change(f"{key}.{name}", a.get(name), b.get(name))


def _change(key: str, a: Any, b: Any) -> Iterator[str]:
    # Compared as JSON, because tuples become lists when they are saved.
    if json.dumps(a, sort_keys=True, default=str) != json.dumps(b, sort_keys=True, default=str):
        yield f"{key}: {_show(a)} -> {_show(b)}"


def _there(value: object) -> str:
    return "absent" if value is None else "present"


def _json(text: str) -> Mapping[str, Any]:
    try:
        values = json.loads(text)
    except ValueError:
        values = text
    return values if isinstance(values, dict) else {"text": values}


def _show(value: Any) -> str:
    if value is None:
        return "absent"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def lines(compared: Comparison, a: str, b: str, top: int) -> Iterator[str | Table]:
    """Yield lines for the console. a and b: the names of the checkpoints. top: maximum number of tensors that are
    listed for each type of difference."""
    yield f"{a} -> {b}"
    for title in ("manifest", "config", "state"):
        found = getattr(compared, title)
        yield f"{title} differs:" if found else f"{title}: equal"
        yield from (f"  {line}" for line in found)
    tensors = compared.tensors
    parts = [
        (f"only in {a}", tensors.only_first),
        (f"only in {b}", tensors.only_second),
        ("with a different shape or dtype", tensors.other_shape),
        ("with different values", [*tensors.different, *range(sum(tensors.scalars.values()))]),
    ]
    counts = [f"{len(found)} {what}" for what, found in parts if found]
    yield f"tensors: {', '.join([f'{tensors.n_equal} equal', *counts])}"
    for what, names in parts[:3]:
        if names:
            yield from (f"  {what}: {name}" for name in names[:top])
            yield from _more(len(names), top)
    yield from (f"  {change} ({count} tensors)" for change, count in tensors.scalars.items())
    if tensors.different[:top]:
        yield _table(tensors, top)
    yield from _more(len(tensors.different), top)
    if compared.unimportant:
        yield f"not counted as differences: {', '.join(line.partition(':')[0] for line in compared.unimportant)}"


def _more(count: int, top: int) -> Iterator[str]:
    if count > top:
        yield f"  and {count - top} more (--top)"


def _table(tensors: TensorsCompared, top: int) -> Table:
    table = Table("tensor")
    for column in ("largest difference", "mean", "relative norm"):
        table.add_column(column, justify="right")
    for each in tensors.different[:top]:
        numbers = (f"{value:.3g}" for value in (each.largest, each.mean, each.relative))
        table.add_row(Text(each.name), *numbers)
    return table
