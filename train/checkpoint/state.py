"""state.json: the state of a run in a checkpoint, apart from the tensors."""

import base64
import binascii
import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.base.errors import ConfigError
from train.checkpoint.full import FullCheckpoint
from train.checkpoint.reader import PREFIX, CheckpointReader
from train.checkpoint.storage.manifest import STATE, CorruptCheckpointError

Groups = Sequence[Mapping[str, Any]]
"""An optimizer's param_groups. In a checkpoint, the `params` of a group are the names of its parameters."""

_NAME_PREFIX = PREFIX.removeprefix("state.model.")


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The state of a run between two batches, without the tensors of the model and the optimizer. It can be serialized
    as JSON."""

    timestamp: Mapping[str, int | float]
    """Composer's counters. Durations, whose names end in `_wct`, are in seconds."""
    position: str
    """The position in the data (RowPlan.state)."""
    rank_zero_seed: int
    callbacks: Mapping[str, Any]
    """The state of each callback, by class name."""
    optimizer: str
    """Class name of the optimizer."""
    param_groups: Groups
    random: Sequence[Mapping[str, Any]]
    """The random state of each rank, as `encode_random` returns it."""


def encode_random(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert the random state of a rank (composer.utils.reproducibility.get_rng_state) to values that can be
    serialized as JSON."""
    name, keys, *rest = state["numpy"]
    encoded: dict[str, Any] = {"python": state["python"], "numpy": [name, keys.tolist(), *rest]}
    for device in ("torch", "cuda"):
        if device in state:
            encoded[device] = base64.b64encode(state[device].numpy().tobytes()).decode()
    return encoded


def decode_random(encoded: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of encode_random."""
    version, keys, gauss = encoded["python"]
    name, numbers, *rest = encoded["numpy"]
    state: dict[str, Any] = {
        "python": (version, tuple(keys), gauss),
        "numpy": (name, np.array(numbers, dtype=np.uint32), *rest),
    }
    for device in ("torch", "cuda"):
        if device in encoded:
            data = bytearray(base64.b64decode(encoded[device], validate=True))
            state[device] = torch.frombuffer(data, dtype=torch.uint8)
    return state


def to_json(state: RunState) -> bytes:
    return json.dumps(asdict(state)).encode()


def read_state(checkpoint: CheckpointReader | FullCheckpoint) -> RunState:
    """Read the state of the run. Raises CorruptCheckpointError if a file is corrupt, and ConfigError if the state is
    missing or incomplete."""
    if isinstance(checkpoint, FullCheckpoint):
        return _from_full(checkpoint)
    path = checkpoint.checkpoint
    if not (path / STATE).exists():
        return _from_items(checkpoint)
    try:
        values = json.loads(checkpoint.read_file(STATE))
        state = RunState(**{field.name: values[field.name] for field in fields(RunState)})
        for random in state.random:
            decode_random(random)
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        if isinstance(error, CorruptCheckpointError):
            raise
        raise CorruptCheckpointError(path, STATE, f"cannot be read: {error!r}") from None
    return state


def state_if_any(checkpoint: CheckpointReader | FullCheckpoint) -> RunState | None:
    """Return the state, or None if the checkpoint contains only weights. Raises CorruptCheckpointError if a file is
    corrupt."""
    try:
        return read_state(checkpoint)
    except CorruptCheckpointError:
        raise
    except ConfigError:
        return None


# Checkpoints written before state.json existed contain Composer's state, with each value pickled.


def _from_items(reader: CheckpointReader) -> RunState:
    nested: dict[str, Any] = {}
    for key, path in (reader.metadata.planner_data or {}).items():
        match path:
            case (
                ("rng", _, _)
                | ("state", "callbacks" | "timestamp" | "dataset_state" | "rank_zero_seed", *_)
                | ("state", "optimizers", _, "param_groups", *_)
            ):
                _put(nested, path, reader.tensor(key) if path[-1] in ("torch", "cuda") else reader.value(key))
    return _from_composer(nested.get("state", {}), nested.get("rng", {}), reader.checkpoint)


def _from_full(checkpoint: FullCheckpoint) -> RunState:
    random = dict(enumerate(checkpoint.content.get("rng", [])))
    return _from_composer(checkpoint.content["state"], random, checkpoint.checkpoint)


def _put(nested: dict[Any, Any], path: Sequence[Any], value: Any) -> None:
    for part in path[:-1]:
        nested = nested.setdefault(part, {})
    nested[path[-1]] = value


def _from_composer(state: Mapping[str, Any], random: Mapping[int, Any], checkpoint: Path) -> RunState:
    """Convert Composer's state. Raises ConfigError if it is not the complete state of a run of this framework."""
    try:
        ((optimizer, saved),) = state["optimizers"].items()
        groups = saved["param_groups"]
        groups = [groups[number] for number in sorted(groups)] if isinstance(groups, dict) else groups
        return RunState(
            timestamp=timestamp_from_composer(state["timestamp"]["Timestamp"]),
            position=state["dataset_state"]["train"]["position"],
            rank_zero_seed=state["rank_zero_seed"],
            # The state of Composer's CheckpointSaver, a list of files, is not used.
            callbacks={key: value for key, value in state["callbacks"].items() if key != "CheckpointSaver"},
            optimizer=optimizer,
            param_groups=[
                {**group, "params": [param.removeprefix(_NAME_PREFIX) for param in group["params"]]} for group in groups
            ],
            random=[encode_random(random[rank]) for rank in sorted(random)],
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ConfigError(
            f"{checkpoint} has no position in the data, so a run cannot resume from it: start a new run from its "
            "weights with another run_name, load_path and load_weights_only=true"
        ) from None


def timestamp_from_composer(timestamp: Mapping[str, Any]) -> dict[str, int | float]:
    """Return the result of Composer's Timestamp.state_dict() with durations in seconds."""
    return {
        key: value.total_seconds() if isinstance(value, datetime.timedelta) else value
        for key, value in timestamp.items()
    }


def timestamp_for_composer(timestamp: Mapping[str, int | float]) -> dict[str, Any]:
    """The inverse of timestamp_from_composer."""
    return {
        key: datetime.timedelta(seconds=value) if key.endswith("_wct") else value for key, value in timestamp.items()
    }
