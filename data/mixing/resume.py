"""Resuming: the past that a checkpoint holds is compared with the config and the data, and planned on from there."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from data.base.errors import ConfigError
from data.mixing.segments import Piece, Segment, Timeline
from data.mixing.stages import StageResolver
from data.mixing.state import DataState


def check_past(saved: DataState, now: DataState) -> None:
    """`now`: the state of a run with this config and data at its beginning. Raises ConfigError that names the
    difference when the past of `saved` cannot be this run's."""
    _check_data(saved, now)
    _check_stages(saved, now)


def _check_data(saved: DataState, now: DataState) -> None:
    compared = [(key, getattr(saved, key), getattr(now, key)) for key in ("seed", "shuffle", "max_seq_len")]
    changed = [f"{key} was {then}, now {value}" for key, then, value in compared if then != value]
    last = saved.segments[-1]
    drawn = last.interleaving.counts(saved.rows)
    for (name, fingerprint), rows in zip(saved.streams.items(), drawn.tolist(), strict=True):
        found = now.streams.get(name)
        label = f"stream {name}" if name else "the dataset"
        if found is None:
            changed.append(f"{label} is gone, which gave {rows:,} rows (it may stay with a proportion of 0)")
        elif found != fingerprint:
            changed.append(f"the fingerprint of {label} was {fingerprint}, now {found}")
    then, size = last.global_batch_size, now.segments[-1].global_batch_size
    at_edge = saved.rows in [last.row(end) for end in last.ends if end is not None]
    if size != then and not at_edge:
        changed.append(f"global_train_batch_size was {then}, now {size}, which can change only where a stage ends")
    if changed:
        raise ConfigError(
            f"dataset is not what the checkpoint has had so far ({'; '.join(changed)}): put it back to go on, "
            "or start another run from the weights, with another run_name, load_path and load_weights_only=true"
        )


def _check_stages(saved: DataState, now: DataState) -> None:
    last, batch, stages = saved.segments[-1], saved.batch, now.segments[-1].stages
    changed = []
    for number, (stage, end) in enumerate(zip(last.stages, last.ends, strict=True)):
        found = stages[number] if number < len(stages) else None
        begin = 0 if number == 0 else last.ends[number - 1]
        if end is not None and end <= batch and found != stage:
            changed.append(f"stage {stage['name']} is done; it was {_describe(stage)}, now {_describe(found)}")
        in_it = begin is not None and begin < batch and (end is None or batch < end)
        # One mix for all becomes the first of the stages that are written now.
        if in_it and (found is None or stage["name"] not in ("", found["name"])):
            changed.append(f"the run is in stage {stage['name'] or 'one mix for all'}, now {_describe(found)}")
    if changed:
        raise ConfigError(
            f"stages: the checkpoint is at batch {batch}: its past cannot change ({'; '.join(changed)}): put it "
            "back to go on; later stages may change, and stages may be added after them"
        )


def resumed(saved: DataState, resolver: StageResolver) -> tuple[Timeline, str | None]:
    """The saved segments, and another one where the config plans other rows from the checkpoint on; then the second
    value says what changes. The resolver's streams begin with those of the checkpoint, in its order."""
    added = resolver.streams.tokens_per_row[len(saved.streams) :]
    past = Timeline(tuple(segment.widened(added) for segment in saved.segments))
    before, batch = past.last, saved.batch
    counts = past.segment(batch).counts_before(batch).tolist()
    fresh = resolver.next_segment(saved.rows, counts, before)
    if _same_future(fresh, before, batch):
        # The stages may be written differently: later starts are held to the new ones.
        return Timeline((*past.segments[:-1], replace(before, stages=fresh.stages))), None
    made = time.strftime("%Y-%m-%d %H:%M:%S %z")
    note = f"the plan of the data changes at batch {batch}: {_difference(fresh, before)} ({made})"
    return Timeline((*past.segments, replace(fresh, made=made))), note


def _same_future(new: Segment, old: Segment, batch: int) -> bool:
    """Whether both draw the same rows from the batch on."""
    if new.global_batch_size != old.global_batch_size or new.ends != old.ends:
        return False
    rest = old.rest(batch)
    return len(new.pieces) == len(rest) and all(map(_same_piece, new.pieces, rest))


def _same_piece(a: Piece, b: Piece) -> bool:
    if (a.stage, a.n_batches) != (b.stage, b.n_batches):
        return False
    ends_a, ends_b = ([*each.start, *each.end, each.lr_start, each.lr_end] for each in (a, b))
    # Shares that begin and end alike are alike in between too when their rates are.
    rates_a, rates_b = (each.stage_of(1).rates() for each in (a, b))
    return all(np.allclose(x, y, rtol=0, atol=1e-12) for x, y in ((ends_a, ends_b), (rates_a, rates_b)))


def _difference(new: Segment, old: Segment) -> str:
    changes = []
    if new.global_batch_size != old.global_batch_size:
        changes.append(f"global_train_batch_size {old.global_batch_size} -> {new.global_batch_size}")
    for number in range(max(len(new.stages), len(old.stages))):
        a = old.stages[number] if number < len(old.stages) else None
        b = new.stages[number] if number < len(new.stages) else None
        ends = [s.ends[number] if number < len(s.ends) else None for s in (old, new)]
        if a != b or ends[0] != ends[1]:
            changes.append(
                f"stage {(b or a or {})['name']}: {_describe(a)} to batch {ends[0]} -> "
                f"{_describe(b)} to batch {ends[1]}"
            )
    in_rows = {piece.stage for piece in old.rest(new.first_batch) if piece.is_of_version_2()}
    changes += [
        f"stage {new.stages[piece.stage]['name']}: its shares change linearly in tokens, no longer in rows"
        for piece in new.pieces
        if piece.stage in in_rows and piece.stage_of(1).rates() != (1.0, 1.0)
    ]
    return "; ".join(changes) or "the shares of the streams are others"


def _describe(stage: Mapping[str, Any] | None) -> str:
    if stage is None or "proportions" not in stage:
        return "none"
    return json.dumps({key: value for key, value in stage.items() if key != "name"})
