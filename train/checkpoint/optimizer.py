"""Report how the optimizer's settings in the config differ from those in a checkpoint. The run uses the settings in the
config."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from train.checkpoint.state import Groups


def changed_settings(optimizer: str, saved: Groups, now: Groups, names: Mapping[torch.nn.Parameter, str]) -> list[str]:
    """Return a text for each setting that changed, such as `lr 0.1 -> 0.01`. If the setting did not change in all
    parameter groups, the names of the groups in which it changed are appended.

    `optimizer` is the value of optimizer.name; `names` maps parameters to their names.
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
    """Return the settings of a parameter group, with the keys and units of the YAML."""
    settings = {**group, "lr": group["initial_lr"]}
    if optimizer == "decoupled_adamw":
        # train/optim/optimizers.py divides weight_decay by the learning rate before it calls torch's AdamW.
        settings["weight_decay"] *= settings["lr"]
    keys = ("lr", "betas", "eps", "momentum", "weight_decay")
    return {key: tuple(settings[key]) if key == "betas" else (settings[key],) for key in keys if key in settings}


def _close(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return all(math.isclose(x, y, rel_tol=1e-9) for x, y in zip(a, b, strict=True))


def _show(values: tuple[float, ...]) -> str:
    shown = ", ".join(f"{value:.6g}" for value in values)
    return f"[{shown}]" if len(values) > 1 else shown
