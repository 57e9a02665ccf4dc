"""The state of the training data in checkpoints, and how a run resumes with changed stages, streams or batch size."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from data.base.errors import ConfigError
from data.mixing.segments import Piece, Segment, Timeline
from data.mixing.stages import StageResolver

STATE_VERSION = 3
"""Version of the state's format. Ramps are linear in rows in version 2, and linear in tokens in version 3."""


@dataclass(frozen=True, kw_only=True)
class DataState:
    """The position of a run in its data, and the plan to which the position refers."""

    rows: int
    """Number of rows that all ranks together have drawn so far."""
    max_seq_len: int
    seed: int | None
    """Seed of the shuffle; None if rows are not shuffled."""
    shuffle: bool
    streams: dict[str, str]
    """Name of each stream -> fingerprint of its rows. The streams are in the order of the plan."""
    segments: tuple[Segment, ...]

    @property
    def batch(self) -> int:
        """The number of the next batch."""
        return self.segments[-1].batch(self.rows)

    @property
    def n_stages_done(self) -> int:
        """Number of completed stages of the last segment; 0 without stages."""
        return sum(end is not None and end <= self.batch for end in self.segments[-1].ends)

    @property
    def in_a_stage(self) -> bool:
        """Whether the first stage that is not complete has begun."""
        ends, done = self.segments[-1].ends, self.n_stages_done
        begin = 0 if done == 0 else ends[done - 1]
        named = done < len(ends) and self.segments[-1].stages[done]["name"] != ""
        return named and begin is not None and begin < self.batch

    @property
    def ends_a_stage(self) -> bool:
        """Whether a stage ends at this position. global_train_batch_size may change only where a stage ends."""
        last = self.segments[-1]
        return self.rows in [last.row(end) for end in last.ends if end is not None]

    def write(self) -> dict[str, str]:
        """The state as one JSON string, so that its shape in the checkpoint does not depend on the plan."""
        state = {
            "version": STATE_VERSION,
            "rows": self.rows,
            "max_seq_len": self.max_seq_len,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "streams": [{"name": name, "fingerprint": fingerprint} for name, fingerprint in self.streams.items()],
            "segments": [asdict(segment) for segment in self.segments],
        }
        return {"position": json.dumps(state)}


def read_state(state: Mapping[str, Any]) -> DataState:
    """Parse a checkpoint's state. Raises ConfigError if the state's version is not supported."""
    try:
        saved: dict[str, Any] = json.loads(state["position"])
    except (KeyError, TypeError, ValueError):
        saved = {"version": state.get("version")}
    if saved.get("version") not in (2, STATE_VERSION):
        raise ConfigError(
            f"the checkpoint's data position has version {saved.get('version')}, but this code supports versions 2 and "
            f"{STATE_VERSION}: resume with the code that wrote the checkpoint, or start a new run with "
            "load_weights_only=true"
        )
    return DataState(
        rows=saved["rows"],
        max_seq_len=saved["max_seq_len"],
        seed=saved["seed"],
        shuffle=saved["shuffle"],
        streams={stream["name"]: stream["fingerprint"] for stream in saved["streams"]},
        segments=tuple(_segment(segment) for segment in saved["segments"]),
    )


def _segment(saved: Mapping[str, Any]) -> Segment:
    alike = {"tokens_per_row": [1.0] * len(saved["counts"])}  # checkpoints of version 2 do not contain these values
    per_stream = ("start", "end", "tokens_per_row")
    every = [alike | piece for piece in saved["pieces"]]
    pieces = [Piece(**piece | {key: tuple(piece[key]) for key in per_stream}) for piece in every]
    tuples = {key: tuple(saved[key]) for key in ("counts", "stages", "ends")}
    return Segment(**{**saved, **tuples, "pieces": tuple(pieces)})


def position(state: Mapping[str, Any]) -> tuple[int, int]:
    """The numbers of batches and rows that all ranks together had drawn when a checkpoint was saved. Raises the same
    errors as `read_state`."""
    saved = read_state(state)
    return saved.batch, saved.rows


def check_past(saved: DataState, now: DataState) -> None:
    """Check that this run can resume from `saved`. `now` is the state at the beginning of a run with the current config
    and data. Raises ConfigError if the two states differ in rows that were already drawn; the message lists the
    differences."""
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
            changed.append(
                f"{label} was removed after {rows:,} of its rows were drawn (restore the stream; its proportion "
                "may be 0)"
            )
        elif found != fingerprint:
            changed.append(f"the rows of {label} have changed (fingerprint was {fingerprint}, is now {found})")
    then, size = last.global_batch_size, now.segments[-1].global_batch_size
    if size != then and not saved.ends_a_stage:
        changed.append(f"global_train_batch_size was {then}, now {size}, but it can only change where a stage ends")
    if changed:
        raise ConfigError(
            f"dataset differs from the checkpoint's dataset ({'; '.join(changed)}): restore the old dataset to resume, "
            "or start a new run from the weights, with another run_name, load_path and load_weights_only=true"
        )


def _check_stages(saved: DataState, now: DataState) -> None:
    last, batch, stages = saved.segments[-1], saved.batch, now.segments[-1].stages
    changed = []
    for number, (stage, end) in enumerate(zip(last.stages, last.ends, strict=True)):
        found = stages[number] if number < len(stages) else None
        begin = 0 if number == 0 else last.ends[number - 1]
        if end is not None and end <= batch and found != stage:
            changed.append(
                f"stage {stage['name']} is completed; it was {_describe(stage)}, but is now {_describe(found)}"
            )
        in_it = begin is not None and begin < batch and (end is None or batch < end)
        # If the checkpoint has no stages, all batches before the checkpoint count as part of the first stage in the
        # current config.
        if in_it and (found is None or stage["name"] not in ("", found["name"])):
            where = f"stage {stage['name']}" if stage["name"] else "one mix without stages"
            changed.append(f"the run is in {where}, but the config now has {_describe(found)} in its place")
    if changed:
        raise ConfigError(
            f"stages: the checkpoint is at batch {batch}, and earlier stages cannot change ({'; '.join(changed)}): "
            "restore the earlier stages to resume; later stages may be changed or added"
        )


def resumed(saved: DataState, resolver: StageResolver) -> tuple[Timeline, str | None]:
    """Return the segments of the run and a note for the user, or None instead of the note. The segments are those of
    the checkpoint, followed by a new segment if the current config plans different rows after the checkpoint. The note
    then describes the change. The resolver's list of streams must begin with the streams of the checkpoint, in the same
    order."""
    added = resolver.streams.tokens_per_row[len(saved.streams) :]
    past = Timeline(tuple(segment.widened(added) for segment in saved.segments))
    before, batch = past.last, saved.batch
    counts = past.segment(batch).counts_before(batch).tolist()
    fresh = resolver.next_segment(saved.rows, counts, before)
    if _same_future(fresh, before, batch):
        # The current config may describe the same stages in a different way. The new description is stored, so that the
        # next time the run resumes, its config is compared with the new description.
        return Timeline((*past.segments[:-1], replace(before, stages=fresh.stages))), _other_start(saved, fresh)
    current = saved.n_stages_done if saved.in_a_stage else None
    made = time.strftime("%Y-%m-%d %H:%M:%S %z")
    note = f"the data plan changes at batch {batch}: {_difference(fresh, before, current)} ({made})"
    return Timeline((*past.segments, replace(fresh, made=made))), note


def _other_start(saved: DataState, fresh: Segment) -> str | None:
    """A note if the only change in the config is the start of the current ramp. The change has no effect, because the
    ramp has already begun."""
    number, stages = saved.n_stages_done, saved.segments[-1].stages
    if not saved.in_a_stage or _start(stages[number]) == _start(fresh.stages[number]):
        return None
    return (
        f"stage {stages[number]['name']}: the run continues this ramp from its current mix, so the change from "
        f"{_describe(stages[number])} to {_describe(fresh.stages[number])} has no effect"
    )


def _start(stage: Mapping[str, Any]) -> tuple[dict[str, float], float]:
    """The shares and the scale of the learning rate at the start of a stage."""
    mix = stage["proportions"].get("from", stage["proportions"])
    scale, total = stage["lr_scale"], sum(mix.values())
    shares = {name: round(share / total, 12) for name, share in mix.items() if share}
    return shares, scale.get("from", 1.0) if isinstance(scale, Mapping) else scale


def _same_future(new: Segment, old: Segment, batch: int) -> bool:
    """Whether both segments draw the same rows from this batch on."""
    if new.global_batch_size != old.global_batch_size or new.ends != old.ends:
        return False
    rest = old.rest(batch)
    return len(new.pieces) == len(rest) and all(map(_same_piece, new.pieces, rest))


def _same_piece(a: Piece, b: Piece) -> bool:
    if (a.stage, a.n_batches) != (b.stage, b.n_batches):
        return False
    ends_a, ends_b = ([*each.start, *each.end, each.lr_start, each.lr_end] for each in (a, b))
    # If starts, ends and rates are the same, all shares between start and end are the same too.
    rates_a, rates_b = (each.stage_of(1).rates() for each in (a, b))
    return all(np.allclose(x, y, rtol=0, atol=1e-12) for x, y in ((ends_a, ends_b), (rates_a, rates_b)))


def _difference(new: Segment, old: Segment, current: int | None) -> str:
    """Describe how the plans differ. current: the number of the run's current stage."""
    changes = []
    if new.global_batch_size != old.global_batch_size:
        changes.append(f"global_train_batch_size {old.global_batch_size} -> {new.global_batch_size}")
    for number in range(max(len(new.stages), len(old.stages))):
        a = old.stages[number] if number < len(old.stages) else None
        b = new.stages[number] if number < len(new.stages) else None
        ends = [s.ends[number] if number < len(s.ends) else None for s in (old, new)]
        if a != b or ends[0] != ends[1]:
            where = " (the current stage)" if number == current else ""
            changes.append(
                f"stage {(b or a or {})['name']}{where}: {_describe(a)} to batch {ends[0]} -> "
                f"{_describe(b)} to batch {ends[1]}"
            )
    in_rows = {piece.stage for piece in old.rest(new.first_batch) if piece.is_of_version_2()}
    changes += [
        f"stage {new.stages[piece.stage]['name']}: the shares now change linearly with the number of tokens, and no "
        "longer with the number of rows"
        for piece in new.pieces
        if piece.stage in in_rows and piece.stage_of(1).rates() != (1.0, 1.0)
    ]
    return "; ".join(changes) or "the shares of the streams change"


def _describe(stage: Mapping[str, Any] | None) -> str:
    if stage is None or "proportions" not in stage:
        return "none"
    return json.dumps({key: value for key, value in stage.items() if key != "name"})
