"""What a checkpoint holds of a run's plan: its format, written and read."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from data.base.errors import ConfigError
from data.mixing.segments import Piece, Segment

STATE_VERSION = 3
"""Of the format. 2: ramps are linear in rows. 3: in tokens."""


@dataclass(frozen=True, kw_only=True)
class DataState:
    """The position of a run in its data, and what that position means."""

    rows: int
    """Of all ranks, so far."""
    max_seq_len: int
    seed: int | None
    """A shuffle has a seed; the order of the files has none."""
    shuffle: bool
    streams: dict[str, str]
    """Name -> fingerprint, in the order of the plan."""
    segments: tuple[Segment, ...]

    @property
    def batch(self) -> int:
        """The batch that comes next."""
        return self.segments[-1].batch(self.rows)

    def write(self) -> dict[str, str]:
        """One text, so that any plan fits any checkpoint."""
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
    """Raises ConfigError for a state that other code wrote."""
    try:
        saved: dict[str, Any] = json.loads(state["position"])
    except (KeyError, TypeError, ValueError):
        saved = {"version": state.get("version")}
    if saved.get("version") not in (2, STATE_VERSION):
        raise ConfigError(
            f"the checkpoint's data position has version {saved.get('version')}, but this code reads "
            f"2 and {STATE_VERSION}: go on with the code that wrote it, or start another run with "
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
    alike = {"tokens_per_row": [1.0] * len(saved["counts"])}  # of version 2
    per_stream = ("start", "end", "tokens_per_row")
    every = [alike | piece for piece in saved["pieces"]]
    pieces = [Piece(**piece | {key: tuple(piece[key]) for key in per_stream}) for piece in every]
    tuples = {key: tuple(saved[key]) for key in ("counts", "stages", "ends")}
    return Segment(**{**saved, **tuples, "pieces": tuple(pieces)})


def position(state: Mapping[str, Any]) -> tuple[int, int]:
    """How many batches, and how many rows, all ranks have been given by a checkpoint. Raises what read_state raises."""
    saved = read_state(state)
    return saved.batch, saved.rows
