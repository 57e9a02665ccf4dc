"""Which rows each batch of a run has: a config's stages resolved into batches, and what a checkpoint holds of them.

A plan is made of segments. A run that is never changed has one. Where a run goes on under a changed future, a further
segment begins at the checkpoint's batch with the rows that each stream has given by then, so that the past stays as it
was and no row is given twice.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np

from data.base.durations import Clock, parse_duration
from data.base.errors import ConfigError, DataError
from data.config.dataset import DatasetConfig, StreamConfig
from data.config.loader import DataLoaderConfig, PassesOf, StageConfig
from data.mixing.mixture import Interleaving, Mixture, Stage, StreamOrder

STATE_VERSION = 3
"""Of what a checkpoint holds. 2: ramps are linear in rows. 3: in tokens."""
BLOCK_ROWS = 1024
"""Rows that are planned at once."""


class StreamShape(Protocol):
    """What a plan has to know of a stream's rows."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def n_rows(self) -> int: ...
    @property
    def tokens(self) -> int | None: ...
    @property
    def shard_sizes(self) -> np.ndarray: ...


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of batches in which each stream's share of the tokens changes linearly in the tokens so far."""

    stage: int
    n_batches: int | None
    """None: to the end, however far that is."""
    start: tuple[float, ...]
    end: tuple[float, ...]
    """[S] shares of the rows."""
    tokens_per_row: tuple[float, ...]
    """[S] mean tokens of each stream's rows when the plan was made. In checkpoints of version 2 all were 1: there the
    shares are linear in rows."""
    lr_start: float
    lr_end: float

    def stage_of(self, global_batch_size: int) -> Stage:
        """The piece in rows."""
        n_rows = math.inf if self.n_batches is None else float(self.n_batches * global_batch_size)
        return Stage(n_rows, np.array(self.start), np.array(self.end), np.array(self.tokens_per_row))

    def is_of_version_2(self) -> bool:
        """Whether all rows that it draws were taken to hold one token."""
        drawn = zip(self.start, self.end, self.tokens_per_row, strict=True)
        return all(mean == 1 for start, end, mean in drawn if start or end)

    def shares(self, part: float) -> tuple[float, ...]:
        """[S] shares of the rows when that part (0 to 1) of its batches is over."""
        return tuple(self.stage_of(1).shares(part).tolist())

    def lr_scale(self, part: float) -> float:
        """What the learning rate is multiplied by then."""
        return self.lr_start + part * (self.lr_end - self.lr_start)


@dataclass(frozen=True, eq=False, kw_only=True)
class Mix:
    """What a run is made of at one of its moments."""

    rows: np.ndarray
    tokens: np.ndarray
    """[S] shares of the rows, and of their tokens without padding."""
    lr_scale: float


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A plan from one batch on."""

    first_batch: int
    first_row: int
    global_batch_size: int
    counts: tuple[int, ...]
    """[S] rows that each stream had given before."""
    stages: tuple[dict[str, Any], ...]
    """As the config said them."""
    ends: tuple[int | None, ...]
    """The batch after each stage's last."""
    pieces: tuple[Piece, ...]
    made: str = ""
    """When, where a run went on under a changed future."""

    def interleaving(self) -> Interleaving:
        return Interleaving([piece.stage_of(self.global_batch_size) for piece in self.pieces], self.counts)

    def row(self, batch: int) -> int:
        """The run's row with which the batch begins."""
        return self.first_row + (batch - self.first_batch) * self.global_batch_size

    def batch(self, row: int) -> int:
        return self.first_batch + (row - self.first_row) // self.global_batch_size

    def at(self, batch: int) -> tuple[Piece, float]:
        """The piece that the batch is in, and which part of it (0 to 1) is over when the batch begins."""
        first = self.first_batch
        for piece in self.pieces:
            if piece.n_batches is None or batch < first + piece.n_batches:
                return piece, (batch - first) / piece.n_batches if piece.n_batches else 0.0
            first += piece.n_batches
        return self.pieces[-1], 1.0


class RowPlan:
    """The rows of a run's batches. `resume` goes on from a checkpoint; until then the run is at its beginning."""

    def __init__(
        self,
        config: DataLoaderConfig,
        streams: Mapping[str, StreamShape],
        clock: Clock,
        *,
        seed: int,
        resuming: bool = False,
    ) -> None:
        """`resuming`: `resume` comes next, and it checks lengths and repeats.

        Raises ConfigError for stages that cannot be, or would repeat rows, and DataError for streams that together
        have fewer rows than one global batch.
        """
        self._config, self._clock = config, clock
        self._size = size = clock.rows_per_batch
        self._streams = dict(streams)
        self.names = list(streams)
        n_rows = sum(stream.n_rows for stream in streams.values())
        if n_rows < size:
            raise DataError(
                f"the dataset has {n_rows} rows of {config.dataset.max_seq_len} tokens, but one global batch has "
                f"{size}: lower global_train_batch_size or max_seq_len, or add data"
            )
        dataset = config.dataset
        self.seed = seed if dataset.shuffle_seed is None else dataset.shuffle_seed
        self.notes = _normalised(config)
        """What the one who starts the run should know of the plan."""
        self.segments: list[Segment] = []
        self._append(self._segment(first_batch=0, first_row=0, counts=[0] * len(self.names), before=None))
        # What the config would do from the beginning is not what it does after another past.
        if not resuming:
            self._check_length()
            self._check_repeats()

    @property
    def global_batch_size(self) -> int:
        return self._size

    def rows(self, batch: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the batch's rows start..stop-1: the stream (its place in `names`) and the row's id in it; int64 each."""
        if self._size > BLOCK_ROWS:
            first = self._now.row(batch)
            return self._mixture.rows(first + start, first + stop)
        # Small batches are planned many at a time: what a call costs hardly depends on its rows.
        n_batches = BLOCK_ROWS // self._size
        block, place = divmod(batch - self._now.first_batch, n_batches)
        if block not in self._blocks:
            if len(self._blocks) == 2:  # one that is read, and one that is looked ahead into
                del self._blocks[next(iter(self._blocks))]
            first = self._now.row(self._now.first_batch + block * n_batches)
            self._blocks[block] = self._mixture.rows(first, first + n_batches * self._size)
        s_N, id_N = self._blocks[block]
        at = place * self._size
        return s_N[at + start : at + stop], id_N[at + start : at + stop]

    def counts(self, batch: int) -> np.ndarray:
        """Rows that each stream has given before the batch; int64 [S]."""
        segment = self._planned_in(batch)
        return self._interleaving(segment).counts(segment.row(batch))

    def planned(self, batch: int) -> np.ndarray:
        """The integral of each stream's planned share up to the batch, in rows; float64 [S]."""
        segment = self._planned_in(batch)
        return self._interleaving(segment).planned(segment.row(batch))

    def shards(self, first: int, stop: int) -> dict[str, np.ndarray]:
        """Stream -> the shards in whose windows the rows of batches first..stop-1 lie."""
        orders = zip(self.names, self._mixture.orders, *self._given(first, stop), strict=True)
        return {name: order.shards(start, end) for name, order, start, end in orders}

    def n_shards(self, first: int, stop: int) -> dict[str, int]:
        """Stream -> how many those are, each counted once in every pass."""
        orders = zip(self.names, self._mixture.orders, *self._given(first, stop), strict=True)
        return {name: order.n_shards(start, end) for name, order, start, end in orders}

    def most_shards(self, n_batches: int) -> dict[str, int]:
        """Stream -> how many shards so many batches may need at a time, wherever in the run they are."""
        largest_S = np.max([(piece.start, piece.end) for piece in self._now.pieces], axis=(0, 1)).tolist()
        rows, n_streams = n_batches * self._size, len(self.names)
        # The counts at both ends are within 1/2 + share S/2 of the plan.
        most_S = [min(rows, math.ceil(share * (rows + n_streams) + 1)) if share else 0 for share in largest_S]
        orders = zip(self.names, self._mixture.orders, most_S, strict=True)
        return {name: order.most_shards(n_rows) for name, order, n_rows in orders}

    def _given(self, first: int, stop: int) -> list[list[int]]:
        """Rows that each stream has given before each of the two batches."""
        return [self.counts(max(batch, 0)).tolist() for batch in (first, stop)]

    def shares(self, batch: int) -> np.ndarray:
        """Each stream's planned share of the batch's rows; float64 [S]."""
        segment = self._planned_in(batch)
        merge, first = self._interleaving(segment), segment.row(batch)
        size = segment.global_batch_size
        return np.maximum(merge.planned(first + size) - merge.planned(first), 0.0) / size

    def token_shares(self, batch: int) -> np.ndarray:
        """Each stream's planned share of the batch's tokens, without padding: what `proportions` configure; [S]."""
        return self.of_tokens(self.shares(batch))

    def of_tokens(self, rows: np.ndarray) -> np.ndarray:
        """[S] shares of the tokens in so many rows (or such shares of rows) that hold their streams' means."""
        tokens_S = rows * self._tokens_per_row()
        return tokens_S / tokens_S.sum()

    def lr_scale(self, batch: int) -> float:
        """What the schedule's learning rate is multiplied by in the batch."""
        piece, part = self._planned_in(batch).at(batch)
        return piece.lr_scale(part)

    def start_of(self, number: int) -> Mix:
        """What the stage of that number begins with."""
        first = self.stages()[number][1]
        return self._mix(*self._planned_in(first).at(first))

    def end_of(self, number: int) -> Mix:
        """What the stage of that number ends with."""
        _, first, end = self.stages()[number]
        if end is None:
            return self._mix(self._now.pieces[-1], 1.0)
        segment = self._planned_in(max(end - 1, first))
        piece, part = segment.at(max(end - 1, first))
        return self._mix(piece, part + 1 / piece.n_batches if piece.n_batches else 1.0)

    def stage(self, batch: int) -> str:
        """The name of the batch's stage; the last one's after its end; "" without stages."""
        segment = self._planned_in(batch)
        return segment.stages[segment.at(batch)[0].stage]["name"]

    def stages(self) -> list[tuple[str, int, int | None]]:
        """`(name, first batch, batch after the last)` of each stage."""
        ends = self._now.ends
        return [
            (str(stage["name"]), 0 if i == 0 else int(ends[i - 1] or 0), ends[i])
            for i, stage in enumerate(self._now.stages)
        ]

    def state(self, rows: int) -> dict[str, str]:
        """What a checkpoint holds after so many rows of all ranks: one text, so that any plan fits any checkpoint."""
        order = self._mixture.orders[0]
        state = {
            "version": STATE_VERSION,
            "rows": rows,
            "max_seq_len": self._config.dataset.max_seq_len,
            # A shuffle has a seed; the order of the files has none.
            "seed": self.seed if order.shuffle else None,
            "shuffle": order.shuffle,
            "streams": [{"name": name, "fingerprint": s.fingerprint} for name, s in self._streams.items()],
            "segments": [asdict(segment) for segment in self.segments],
        }
        return {"position": json.dumps(state)}

    def resume(self, state: Mapping[str, Any]) -> int:
        """Takes the checkpoint's past, and what the config says now for the future; the batch that comes next.

        Raises ConfigError, naming the difference, when the config or the data contradict the past.
        """
        saved = _read_state(state)
        self._check_past(saved)
        self._take_order([stream["name"] for stream in saved["streams"]])
        segments = [_segment_of(segment) for segment in saved["segments"]]
        last = segments[-1]
        batch = last.batch(saved["rows"])
        self._check_stages(last, batch)
        means = self._tokens_per_row()[len(saved["streams"]) :]
        self.segments = [_widened(segment, means) for segment in segments[:-1]]
        self._append(_widened(last, means))
        self.notes = []
        fresh = self._segment(
            first_batch=batch, first_row=saved["rows"], counts=self.counts(batch).tolist(), before=self._now
        )
        before = self._now
        if _same_future(fresh, before, batch):
            # Said in other words, perhaps: later starts are held to the new ones.
            self.segments[-1] = self._now = replace(before, stages=fresh.stages)
        else:
            self._append(replace(fresh, made=time.strftime("%Y-%m-%d %H:%M:%S %z")))
        self._check_length()
        self._check_repeats()
        if len(self.segments) > len(segments):
            message = f"the plan of the data changes at batch {batch}: {_difference(fresh, before)}"
            self.notes.append(f"{message} ({self._now.made})")
        return batch

    def _append(self, segment: Segment) -> None:
        self.segments.append(segment)
        self._now = segment
        orders = [
            StreamOrder(stream.shard_sizes, self.seed, number, shuffle=self._config.dataset.shuffle)
            for number, stream in enumerate(self._streams.values())
        ]
        self._mixture = Mixture(orders, segment.interleaving())
        self._blocks: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def _planned_in(self, batch: int) -> Segment:
        """The segment of the batch."""
        return next((segment for segment in reversed(self.segments) if segment.first_batch <= batch), self.segments[0])

    def _interleaving(self, segment: Segment) -> Interleaving:
        return self._mixture.interleaving if segment is self._now else segment.interleaving()

    def _mix(self, piece: Piece, part: float) -> Mix:
        rows = np.array(piece.shares(min(part, 1.0)))
        return Mix(rows=rows, tokens=self.of_tokens(rows), lr_scale=piece.lr_scale(min(part, 1.0)))

    # From a config to batches.

    def _segment(self, *, first_batch: int, first_row: int, counts: Sequence[int], before: Segment | None) -> Segment:
        stages = self._config.stages
        ends = self._ends(first_batch, before)
        pieces: list[Piece] = []
        begin = 0
        for number, (stage, end) in enumerate(zip(stages, ends, strict=True)):
            if end is None or end > first_batch:
                pieces.append(self._piece(number, stage, begin, end, first_batch, before))
            begin = end if end is not None else begin
        if not stages:
            share = tuple(self._default_shares())
            means = self._tokens_per_row()
            pieces.append(
                Piece(stage=0, n_batches=None, start=share, end=share, tokens_per_row=means, lr_start=1.0, lr_end=1.0)
            )
        elif not pieces:
            # Past the last stage: its mix goes on.
            pieces.append(
                self._piece(len(stages) - 1, stages[-1], begin, None, max(first_batch, begin), None, over=True)
            )
        message = tuple(asdict(stage) for stage in stages) or ({"name": ""},)
        return Segment(
            first_batch=first_batch,
            first_row=first_row,
            global_batch_size=self._size,
            counts=tuple(counts),
            stages=message,
            ends=tuple(ends) or (None,),
            pieces=tuple(pieces),
        )

    def _piece(
        self,
        number: int,
        stage: StageConfig,
        begin: int,
        end: int | None,
        first_batch: int,
        before: Segment | None,
        *,
        over: bool = False,
    ) -> Piece:
        start, stop = (self._row_shares(mix) for mix in stage.mixes())
        lr_start, lr_stop = stage.lr_scales()
        if over:
            start, lr_start = stop, lr_stop
        if begin < first_batch and before is not None:
            # In the middle of a ramp: on from where the run is, to where the config says.
            piece, part = before.at(first_batch)
            if start != stop:
                start = piece.shares(part)
            if lr_start != lr_stop:
                lr_start = piece.lr_scale(part)
        n_batches = None if end is None else end - max(begin, first_batch)
        return Piece(
            stage=number,
            n_batches=n_batches,
            start=start,
            end=stop,
            tokens_per_row=self._tokens_per_row(),
            lr_start=lr_start,
            lr_end=lr_stop,
        )

    def _ends(self, now: int, before: Segment | None) -> list[int | None]:
        ends: list[int | None] = []
        begin = 0
        for number, stage in enumerate(self._config.stages):
            frozen = before.ends[number] if before is not None and number < len(before.ends) else None
            if frozen is not None and frozen <= now:
                # The last stage's mix has gone on until now, where the stages that were added begin.
                added = before is not None and number + 1 == len(before.ends) < len(self._config.stages)
                ends.append(now if added else frozen)
            elif stage.duration is None:
                ends.append(None)
            else:
                length = max(self._batches(stage, f"stages[{number}].duration"), 1)
                # A stage that the run is in cannot have ended before.
                ends.append(max(begin + length, now if begin < now else 0))
            begin = ends[-1] if ends[-1] is not None else begin
        return ends

    def _check_length(self) -> None:
        run, ends = self._clock.max_batches, self._now.ends
        if not self._config.stages or run is None:
            return
        is_open, last = ends[-1] is None, self._config.stages[-1].name
        total = max((end for end in ends if end is not None), default=0)
        if total > run or (is_open and total == run):
            raise ConfigError(
                f"stages: they last {total:,} batches, but max_duration is {run:,}, so that {last} would not be "
                "reached or not be finished: shorten them or raise max_duration"
            )
        if total < run and not is_open:
            self.notes.append(
                f"the stages last {total:,} of the run's {run:,} batches: the mix at the end of {last} goes on"
            )

    def _batches(self, stage: StageConfig, key: str) -> int:
        duration = stage.duration
        assert duration is not None
        if isinstance(duration, str) and parse_duration(duration)[1] != "ep":
            return self._clock.batches(duration)
        if isinstance(duration, PassesOf):
            passes, name = duration.ep, duration.of
        elif len(self.names) > 1:
            raise ConfigError(
                f"{key} is {duration!r}, but with several streams `ep` has to say of which: write {{ep: "
                f"{parse_duration(duration)[0]:g}, of: {self.names[0]}}}, or ba, tok or dur"
            )
        else:
            passes, name = parse_duration(duration)[0], self.names[0]
        start, end = (np.array(self._row_shares(mix)) for mix in stage.mixes())
        share = float(Stage(1.0, start, end, np.array(self._tokens_per_row())).mean()[self.names.index(name)])
        if share == 0:
            raise ConfigError(f"{key} counts passes of {name}, but the stage gives {name} no share")
        return math.ceil(round(passes * self._streams[name].n_rows / share, 6) / self._size)

    def _row_shares(self, mix: Mapping[str, float]) -> tuple[float, ...]:
        """[S] shares of rows from shares of tokens: a stream whose rows hold fewer tokens gives more of them."""
        means = zip(self.names, self._tokens_per_row(), strict=True)
        per_token = [mix.get(name, 0.0) / mean for name, mean in means]
        return tuple(share / sum(per_token) for share in per_token)

    def _tokens_per_row(self) -> tuple[float, ...]:
        """[S] mean tokens of each stream's rows; full rows where nobody has counted."""
        full = float(self._config.dataset.max_seq_len)
        streams = self._streams.values()
        return tuple(full if stream.tokens is None else stream.tokens / stream.n_rows for stream in streams)

    def _default_shares(self) -> list[float]:
        """[S] without stages: by `proportion`, or in an epoch of all streams by `choose`, `repeat` or their sizes."""
        configs = self._config.dataset.streams or {}
        proportions = {name: c.proportion for name, c in configs.items() if c.proportion is not None}
        if proportions:
            return list(self._row_shares(proportions))
        rows = epoch_rows(self._config.dataset, self._streams)
        return [rows[name] / sum(rows.values()) for name in self.names]

    def _check_repeats(self) -> None:
        run = self._clock.max_batches
        if run is None:
            return
        if self._clock.counts_passes:
            return
        end = max(run, self._now.first_batch)
        counts, planned = self.counts(end).tolist(), self.planned(end).tolist()
        largest = np.max([(piece.start, piece.end) for piece in self._now.pieces], axis=(0, 1)).tolist()
        configs = self._config.dataset.streams or {"": self._config.dataset}
        for name, given, due, share in zip(self.names, counts, planned, largest, strict=True):
            stream, config = self._streams[name], configs[name]
            passes = given / stream.n_rows
            allowed = max(config.max_repeats, config.repeat or 0, (config.choose or 0) / stream.n_rows)
            # A pass that ends inside a batch may end with that batch: with the stream's part of it.
            whole = (due - share * self._size + 1e-6) / stream.n_rows
            if whole >= allowed:
                key = f"streams.{name}.max_repeats" if name else "max_repeats"
                raise ConfigError(
                    f"dataset.{key} is {config.max_repeats:g}, but in {end:,} batches of {self._size} rows "
                    f"{f'stream {name}' if name else 'the dataset'} gives {given:,}, {passes:.2f} times its "
                    f"{stream.n_rows:,}: write {key}: {math.floor(whole) + 1}, or give it "
                    "less of the run" + ("" if name else f", or write max_duration: {math.ceil(passes)}ep")
                )

    # What a checkpoint's past allows.

    def _check_past(self, saved: Mapping[str, Any]) -> None:
        order = self._mixture.orders[0]
        now = {
            "seed": self.seed if order.shuffle else None,
            "shuffle": order.shuffle,
            "max_seq_len": self._config.dataset.max_seq_len,
        }
        changed = [f"{key} was {saved[key]}, now {value}" for key, value in now.items() if saved[key] != value]
        last = _segment_of(saved["segments"][-1])
        given = last.interleaving().counts(saved["rows"])
        for stream, rows in zip(saved["streams"], given.tolist(), strict=True):
            name, there = stream["name"], self._streams.get(stream["name"])
            label = f"stream {name}" if name else "the dataset"
            if there is None:
                changed.append(f"{label} is gone, which gave {rows:,} rows (it may stay with a proportion of 0)")
            elif there.fingerprint != stream["fingerprint"]:
                changed.append(f"the fingerprint of {label} was {stream['fingerprint']}, now {there.fingerprint}")
        size = last.global_batch_size
        at_edge = saved["rows"] in [last.row(end) for end in last.ends if end is not None]
        if self._size != size and not at_edge:
            changed.append(
                f"global_train_batch_size was {size}, now {self._size}, which can change only where a stage ends"
            )
        if changed:
            raise ConfigError(
                f"dataset is not what the checkpoint has had so far ({'; '.join(changed)}): put it back to go on, "
                "or start another run from the weights, with another run_name, load_path and load_weights_only=true"
            )

    def _check_stages(self, last: Segment, batch: int) -> None:
        now = [asdict(stage) for stage in self._config.stages] or [{"name": ""}]
        changed = []
        for number, (stage, end) in enumerate(zip(last.stages, last.ends, strict=True)):
            there = now[number] if number < len(now) else None
            begin = 0 if number == 0 else last.ends[number - 1]
            if end is not None and end <= batch and there != stage:
                changed.append(f"stage {stage['name']} is done; it was {_describe(stage)}, now {_describe(there)}")
            in_it = begin is not None and begin < batch and (end is None or batch < end)
            # One mix for all becomes the first of the stages that are written now.
            if in_it and (there is None or stage["name"] not in ("", there["name"])):
                changed.append(f"the run is in stage {stage['name'] or 'one mix for all'}, now {_describe(there)}")
        if changed:
            raise ConfigError(
                f"stages: the checkpoint is at batch {batch}: its past cannot change ({'; '.join(changed)}): put it "
                "back to go on; later stages may change, and stages may be added after them"
            )

    def _take_order(self, names: Sequence[str]) -> None:
        """Streams stand as they did, new ones after them: a stream's place is in the key of its shuffle."""
        ordered = [*names, *(name for name in self.names if name not in names)]
        self._streams = {name: self._streams[name] for name in ordered}
        self.names = ordered


def _normalised(config: DataLoaderConfig) -> list[str]:
    """What proportions do not add up to 1."""
    mixes = {f"stages[{n}].proportions": mix for n, stage in enumerate(config.stages) for mix in stage.mixes()}
    streams = config.dataset.streams or {}
    mixes["the streams' proportions"] = {name: stream.proportion or 0.0 for name, stream in streams.items()}
    return [
        f"{key} add up to {total:g}, and are taken as parts of that"
        for key, mix in mixes.items()
        if (total := sum(mix.values())) and not math.isclose(total, 1, abs_tol=1e-6)
    ]


def epoch_rows(dataset: DatasetConfig, streams: Mapping[str, StreamShape]) -> dict[str, float]:
    """Rows of each stream in an epoch of all of them: `choose`, or `repeat` times its rows, or each once."""
    configs: Mapping[str, StreamConfig] = dataset.streams or {}
    out = {}
    for name, stream in streams.items():
        config = configs.get(name, dataset)
        out[name] = (1.0 if config.repeat is None else config.repeat) * stream.n_rows
        if config.choose is not None:
            out[name] = float(config.choose)
    return out


def position(state: Mapping[str, Any]) -> tuple[int, int]:
    """Of a checkpoint's state: how many batches, and how many rows, all ranks have been given by then.

    Raises ConfigError for one that other code wrote.
    """
    saved = _read_state(state)
    return _segment_of(saved["segments"][-1]).batch(saved["rows"]), saved["rows"]


def _read_state(state: Mapping[str, Any]) -> dict[str, Any]:
    try:
        saved = json.loads(state["position"])
    except (KeyError, TypeError, ValueError):
        saved = {"version": state.get("version")}
    if saved.get("version") not in (2, STATE_VERSION):
        raise ConfigError(
            f"the checkpoint's data position has version {saved.get('version')}, but this code reads "
            f"2 and {STATE_VERSION}: go on with the code that wrote it, or start another run with "
            "load_weights_only=true"
        )
    return saved


def _segment_of(saved: Mapping[str, Any]) -> Segment:
    alike = {"tokens_per_row": [1.0] * len(saved["counts"])}  # of version 2
    per_stream = ("start", "end", "tokens_per_row")
    every = [alike | piece for piece in saved["pieces"]]
    pieces = [Piece(**piece | {key: tuple(piece[key]) for key in per_stream}) for piece in every]
    tuples = {key: tuple(saved[key]) for key in ("counts", "stages", "ends")}
    return Segment(**{**saved, **tuples, "pieces": tuple(pieces)})


def _widened(segment: Segment, tokens_per_row: tuple[float, ...]) -> Segment:
    """The segment with further streams of which it draws no rows, given the mean tokens of their rows."""
    none = (0.0,) * len(tokens_per_row)
    pieces = tuple(
        replace(
            piece,
            start=piece.start + none,
            end=piece.end + none,
            tokens_per_row=piece.tokens_per_row + tokens_per_row,
        )
        for piece in segment.pieces
    )
    return replace(segment, counts=segment.counts + (0,) * len(tokens_per_row), pieces=pieces)


def _same_future(new: Segment, old: Segment, batch: int) -> bool:
    """Whether both give the same rows from the batch on."""
    if new.global_batch_size != old.global_batch_size or new.ends != old.ends:
        return False
    rest = _rest(old, batch)
    return len(new.pieces) == len(rest) and all(
        (a.stage, a.n_batches) == (b.stage, b.n_batches)
        and np.allclose(
            [*a.start, *a.end, a.lr_start, a.lr_end], [*b.start, *b.end, b.lr_start, b.lr_end], rtol=0, atol=1e-12
        )
        and _same_course(a, b)
        for a, b in zip(new.pieces, rest, strict=True)
    )


def _same_course(a: Piece, b: Piece) -> bool:
    """Whether shares that begin and end alike are alike in between too."""
    return np.allclose(a.stage_of(1).rates(), b.stage_of(1).rates(), rtol=0, atol=1e-12)


def _rest(segment: Segment, batch: int) -> list[Piece]:
    """The pieces from the batch on, the first of them cut; after the last one, its end goes on."""
    rest: list[Piece] = []
    first = segment.first_batch
    for piece in segment.pieces:
        length = piece.n_batches
        if length is None or first + length > batch:
            before, part = segment.at(max(batch, first))
            assert before is piece
            left = None if length is None else first + length - max(batch, first)
            rest.append(replace(piece, n_batches=left, start=piece.shares(part), lr_start=piece.lr_scale(part)))
        first += length or 0
    last = segment.pieces[-1]
    return rest or [replace(last, n_batches=None, start=last.end, lr_start=last.lr_end)]


def _difference(new: Segment, old: Segment) -> str:
    message = []
    if new.global_batch_size != old.global_batch_size:
        message.append(f"global_train_batch_size {old.global_batch_size} -> {new.global_batch_size}")
    for number in range(max(len(new.stages), len(old.stages))):
        a = old.stages[number] if number < len(old.stages) else None
        b = new.stages[number] if number < len(new.stages) else None
        ends = [s.ends[number] if number < len(s.ends) else None for s in (old, new)]
        if a != b or ends[0] != ends[1]:
            message.append(
                f"stage {(b or a or {})['name']}: {_describe(a)} to batch {ends[0]} -> "
                f"{_describe(b)} to batch {ends[1]}"
            )
    in_rows = {piece.stage for piece in _rest(old, new.first_batch) if piece.is_of_version_2()}
    message += [
        f"stage {new.stages[piece.stage]['name']}: its shares change linearly in tokens, no longer in rows"
        for piece in new.pieces
        if piece.stage in in_rows and piece.stage_of(1).rates() != (1.0, 1.0)
    ]
    return "; ".join(message) or "the shares of the streams are others"


def _describe(stage: Mapping[str, Any] | None) -> str:
    if stage is None or "proportions" not in stage:
        return "none"
    return json.dumps({key: value for key, value in stage.items() if key != "name"})
