"""Builds an optimizer and its parameter groups from the config."""

from typing import Any

import torch

from train.config.optimizer import OptimizerConfig, ParamGroupConfig
from train.models.lora.adapters import is_adapter
from train.models.recompute import named_parameters
from train.optim.adamw import AdamW
from train.optim.lion import DecoupledLionW
from train.optim.patterns import check_any_trained, matching


def build_optimizer(config: OptimizerConfig, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Freeze the parameters that are not trained, and build the optimizer for all other parameters.

    The optimizer has a group for each entry of param_groups, and one group for all other parameters. If no_weight_decay
    matches some of a group's parameters, the group is split into two. Every group has a unique name. If the model has
    adapters, all parameters except the adapters are frozen.
    """
    params = named_parameters(model)
    names = [name for name, _ in params]
    lora = any(map(is_adapter, names))
    frozen = matching(names, config.freeze, "optimizer.freeze")
    undecayed = matching(names, config.no_weight_decay, "optimizer.no_weight_decay")
    own = [
        matching(names, group.match, f"optimizer.param_groups[{i}].match")
        for i, group in enumerate(config.param_groups)
    ]
    trained = {name for name in names if is_adapter(name) or not lora} - frozen
    check_any_trained(trained, config)
    # Parameters are grouped by the patterns that match them, and not by the values of lr or weight_decay, so that the
    # groups stay the same if these values are changed.
    groups: dict[tuple[int | None, bool], list[torch.nn.Parameter]] = {}
    for name, param in params:
        param.requires_grad_(name in trained)
        if name in trained:
            entry = next((number for number, its in enumerate(own) if name in its), None)
            groups.setdefault((entry, name not in undecayed), []).append(param)
    optimizer = _OPTIMIZERS[config.name](
        config, [{"params": params, **_settings(config, *key)} for key, params in groups.items()]
    )
    for group in optimizer.param_groups:
        # Schedules multiply this value, and DecoupledLionW divides by it.
        group["initial_lr"] = group["lr"]
    return optimizer


def _settings(config: OptimizerConfig, entry: int | None, decayed: bool) -> dict[str, Any]:
    """The settings of a parameter group: those of optimizer.param_groups[entry], or the defaults if entry is None."""
    own = ParamGroupConfig(match=[]) if entry is None else config.param_groups[entry]
    default = config.weight_decay if decayed else 0.0
    of = "parameters" if entry is None else f"param_groups[{entry}]"
    return {
        "lr": config.lr if own.lr is None else own.lr,
        "weight_decay": default if own.weight_decay is None else own.weight_decay,
        "name": of if decayed else f"{of} in no_weight_decay",
    }


def _adamw(config: OptimizerConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return AdamW(groups, lr=config.lr, betas=_betas(config), eps=config.eps, fused=True)


def _decoupled_adamw(config: OptimizerConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    # In each step, torch multiplies the weights by 1 - weight_decay * lr, and Composer's DecoupledAdamW by 1 -
    # weight_decay * lr / initial_lr.
    return _adamw(config, [{**group, "weight_decay": group["weight_decay"] / group["lr"]} for group in groups])


def _decoupled_lionw(config: OptimizerConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return DecoupledLionW(groups, lr=config.lr, betas=_betas(config), weight_decay=config.weight_decay)


def _sgd(config: OptimizerConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


_OPTIMIZERS = {
    "adamw": _adamw,
    "decoupled_adamw": _decoupled_adamw,
    "decoupled_lionw": _decoupled_lionw,
    "sgd": _sgd,
}


def _betas(config: OptimizerConfig) -> tuple[float, float]:
    return config.betas[0], config.betas[1]
