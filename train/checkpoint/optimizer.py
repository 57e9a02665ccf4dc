"""What a checkpoint says of its optimizer, and how a run with other settings resumes from it.

A checkpoint holds an optimizer's state by parameter name, but its settings by group number: torch loads them into as
many groups and no more. Here the state is loaded into one group, whatever the groups were and are, and settings are
always those of the run's config.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from data.base.errors import ConfigError
from train.checkpoint.reader import PREFIX, CheckpointReader

Groups = Sequence[Mapping[str, Any]]
"""An optimizer's param_groups; in a checkpoint `params` are names."""

_NAME_PREFIX = PREFIX.removeprefix("state.model.")


def read_groups(checkpoint: Path, optimizer: str) -> Groups:
    """The param_groups of the optimizer (the name of its class) in a checkpoint of the whole state.

    Raises ConfigError when the checkpoint was written with another optimizer.
    """
    saved = _sharded(checkpoint) if checkpoint.is_dir() else _full(checkpoint)
    if optimizer not in saved:
        raise ConfigError(
            f"{checkpoint} cannot be loaded into this run: it was written with {', '.join(saved) or 'no optimizer'}, "
            f"and optimizer.name asks for {optimizer}: put it back, or start another run from the weights, with "
            "another run_name, load_path and load_weights_only=true"
        )
    return [
        {**group, "params": [name.removeprefix(_NAME_PREFIX) for name in group["params"]]} for group in saved[optimizer]
    ]


def _sharded(checkpoint: Path) -> dict[str, list[dict[str, Any]]]:
    reader = CheckpointReader(checkpoint)
    saved: dict[str, dict[int, dict[str, Any]]] = {}
    for key, path in (reader.metadata.planner_data or {}).items():
        match path:
            case ("state", "optimizers", optimizer, "param_groups", number, setting):
                saved.setdefault(optimizer, {}).setdefault(int(number), {})[setting] = reader.value(key)
    return {optimizer: [groups[number] for number in sorted(groups)] for optimizer, groups in saved.items()}


def _full(checkpoint: Path) -> dict[str, list[dict[str, Any]]]:
    # Mapped, not read: weights and moments are in the same file.
    state = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=False)["state"]
    return {optimizer: saved["param_groups"] for optimizer, saved in state.get("optimizers", {}).items()}


@contextmanager
def as_one_group(optimizer: torch.optim.Optimizer, saved: Groups) -> Iterator[None]:
    """Within, the optimizer has one group with the settings that were saved; afterwards the groups that it had.

    The saved settings decide what state there is: SGD keeps a momentum buffer only where momentum is not 0.
    """
    groups = optimizer.param_groups
    optimizer.param_groups = [{**saved[0], "params": [param for group in groups for param in group["params"]]}]
    try:
        yield
    finally:
        optimizer.param_groups = groups


def changed_settings(optimizer: str, saved: Groups, now: Groups, names: Mapping[torch.nn.Parameter, str]) -> list[str]:
    """Each setting that is not what it was, as `lr 0.1 -> 0.01`; with the groups where it is not the same in all.

    optimizer is optimizer.name; names are those of the parameters.
    """
    before = {name: _in_yaml(optimizer, group) for group in saved for name in group["params"]}
    found: dict[str, list[str]] = {}
    for group in now:
        settings = [before[names[param]] for param in group["params"] if names[param] in before]
        for key, value in _in_yaml(optimizer, group).items():
            others = {old[key] for old in settings if key in old and not _close(old[key], value)}
            if others:
                was = " and ".join(_show(other) for other in sorted(others))
                found.setdefault(f"{key} {was} -> {_show(value)}", []).append(group["name"])
    return [change if len(of) == len(now) else f"{change} ({', '.join(of)})" for change, of in found.items()]


def _in_yaml(optimizer: str, group: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    """The settings under the YAML's keys and in its units."""
    settings = {**group, "lr": group["initial_lr"]}
    if optimizer == "decoupled_adamw":
        # As train/optim/optimizers.py gives it to torch's AdamW.
        settings["weight_decay"] *= settings["lr"]
    keys = ("lr", "betas", "eps", "momentum", "weight_decay")
    return {key: tuple(settings[key]) if key == "betas" else (settings[key],) for key in keys if key in settings}


def _close(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(math.isclose(x, y, rel_tol=1e-9) for x, y in zip(a, b, strict=True))


def _show(values: tuple[float, ...]) -> str:
    shown = ", ".join(f"{value:.6g}" for value in values)
    return f"[{shown}]" if len(values) > 1 else shown
