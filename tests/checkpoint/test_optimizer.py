"""A run resumes with other optimizer settings and parameter groups, and every change is named."""

import contextlib
import io
from pathlib import Path

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from torch import nn
from torch.distributed.tensor import DTensor

from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from train.checkpoint.optimizer import changed_settings
from train.config.load import read_config
from train.config.optimizer import OptimizerConfig, ParamGroupConfig
from train.optim.optimizers import build_optimizer
from train.run.fit import fit


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = (nn.Parameter(torch.ones(2)) for _ in range(3))


def changes(before: dict, after: dict) -> list[str]:
    model, settings = Tiny(), {"name": "adamw", "lr": 0.1, "no_weight_decay": ["norm"]}
    names = {param: name for name, param in model.named_parameters()}
    saved = [
        {**group, "params": [names[param] for param in group["params"]]}
        for group in build_optimizer(OptimizerConfig(**{**settings, **before}), model).param_groups
    ]
    config = OptimizerConfig(**{**settings, **after})
    return changed_settings(config.name, saved, build_optimizer(config, model).param_groups, names)


HEAD = ParamGroupConfig(match=["head"], lr=0.01)


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ({}, {}, []),
        ({}, {"weight_decay": 0.1}, ["weight_decay 0 -> 0.1 (parameters)"]),
        ({"weight_decay": 0.1}, {"weight_decay": 0.1, "no_weight_decay": []}, ["weight_decay 0 -> 0.1"]),
        ({"lr": 0.003}, {"lr": 1e-5, "eps": 1e-6}, ["lr 0.003 -> 1e-05", "eps 1e-08 -> 1e-06"]),
        ({}, {"betas": [0.9, 0.99]}, ["betas [0.9, 0.95] -> [0.9, 0.99]"]),
        ({}, {"param_groups": [HEAD]}, ["lr 0.1 -> 0.01 (param_groups[0])"]),
        ({"name": "sgd"}, {"name": "sgd", "momentum": 0.9}, ["momentum 0 -> 0.9"]),
        (
            {"name": "decoupled_adamw", "weight_decay": 0.3},
            {"name": "decoupled_adamw", "weight_decay": 0.2, "lr": 0.7},
            ["lr 0.1 -> 0.7", "weight_decay 0.3 -> 0.2 (parameters)"],
        ),
    ],
)
def test_changed_settings_are_named_as_in_the_yaml(before: dict, after: dict, named: list[str]) -> None:
    assert changes(before, after) == named


class Weights(Callback):
    def fit_end(self, state: State, logger: Logger) -> None:
        params = state.model.named_parameters()
        self.weights = {
            name: (param.full_tensor() if isinstance(param, DTensor) else param).detach().clone()
            for name, param in params
        }


def train(path: str, runs: list[list[str]]) -> list[tuple[dict[str, torch.Tensor], list[str]]]:
    """The final weights of each run, and what it prints about its optimizer."""
    results = []
    for overrides in runs:
        watch = Weights()
        with contextlib.redirect_stdout(io.StringIO()) as out:
            fit(read_config(path, overrides), callbacks=[watch])
        lines = [line for line in out.getvalue().splitlines() if line.startswith("optimizer settings changed")]
        results.append((watch.weights, lines))
    return results


@pytest.mark.ranks
@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", ["fsdp_config={}", "fsdp_config=null"], ids=["sharded", "full"])
def test_moments_are_kept_when_groups_change_on_a_resume(tmp_path: Path, kind: str) -> None:
    common = [kind, "autoresume=true", "optimizer.weight_decay=0", "eval_loader=null", "save_interval=2ba"]
    common += ["scheduler={name: constant_with_warmup}"]
    # One group, which earlier versions wrote for equal values, becomes two groups and then four.
    merged = [*common, "run_name=groups", "max_duration=2ba", "optimizer.no_weight_decay=[]"]
    split = [*common, "run_name=groups", "max_duration=4ba"]
    more = [*split, "max_duration=6ba", "optimizer.weight_decay=0.1"]
    more += ["optimizer.param_groups=[{match: ['*.blocks.0.*'], lr: 1e-4}]"]
    whole = [*common, "run_name=whole", "max_duration=4ba"]
    (results,) = run_ranks(train, 1, write_toy_run(tmp_path), [whole, merged, split, more])
    (expected, _), _, (weights, unchanged), (_, named) = results
    assert unchanged == []
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    (line,) = named
    assert "weight_decay 0 -> 0.1 (param_groups[0], parameters)" in line
    assert "lr 0.003 -> 0.0001 (param_groups[0] in no_weight_decay, param_groups[0])" in line
