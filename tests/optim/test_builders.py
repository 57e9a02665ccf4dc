"""Optimizers, their groups, and schedules."""

from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest
import torch
from composer.core import Time, Timestamp

from data.base.durations import Clock, parse_duration
from data.base.errors import ConfigError
from tests.helpers.small_config import load
from train.config.optimizer import OptimizerConfig, ParamGroupConfig, SchedulerConfig
from train.models.config import FFNConfig, ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.shapes import parameter_sizes
from train.optim.lion import DecoupledLionW
from train.optim.optimizers import build_optimizer
from train.optim.schedules import build_scheduler
from train.planning.memory import memory_per_rank

CLOCK = Clock(tokens_per_batch=800, rows_per_batch=8, rows_per_epoch=100, max_batches=100)


@pytest.fixture
def model() -> DbrxForCausalLM:
    ffn = FFNConfig(ffn_hidden_size=8, moe_num_experts=2, moe_top_k=1)
    return DbrxForCausalLM(ModelConfig(d_model=16, n_heads=8, n_layers=2, vocab_size=32, ffn_config=ffn))


def names(model: DbrxForCausalLM, group: dict) -> set[str]:
    return {name for name, param in model.named_parameters() if any(param is mine for mine in group["params"])}


@pytest.mark.parametrize("name", get_args(get_type_hints(OptimizerConfig)["name"]))
def test_every_optimizer_can_be_built_and_planned(name: str, model: DbrxForCausalLM, tmp_path: Path) -> None:
    changes = ["optimizer.momentum=0.9"] if name == "sgd" else []
    config = load(tmp_path, f"optimizer.name={name}", *changes)
    optimizer = build_optimizer(config.optimizer, model)
    model(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64)).losses_BS.sum().backward()
    optimizer.step()
    params = [param for group in optimizer.param_groups for param in group["params"]]
    moments = sum(state.numel() for param in params for state in optimizer.state[param].values() if state.shape)
    # fp32 weights, gradients and moments, and nothing else.
    numbers = sum(param.numel() for param in params)
    expected = 4 * (2 + moments / numbers) * sum(parameter_sizes(config.model).values())
    assert memory_per_rank(config, 1, gpu=False).states == expected


def test_norms_embeddings_and_router_are_not_decayed(model: DbrxForCausalLM) -> None:
    groups = build_optimizer(OptimizerConfig(name="adamw", lr=0.1, weight_decay=0.5), model).param_groups
    undecayed = set().union(*(names(model, group) for group in groups if group["weight_decay"] == 0))
    expected = {"transformer.wte.weight", "transformer.norm_f.weight"}
    for block in ("transformer.blocks.0.", "transformer.blocks.1."):
        expected |= {block + "norm_attn_norm.norm_1.weight", block + "norm_attn_norm.norm_2.weight"}
        expected |= {block + "ffn.router.layer.weight"}
    assert undecayed == expected
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_all_are_decayed_on_request(model: DbrxForCausalLM) -> None:
    config = OptimizerConfig(name="adamw", lr=0.1, weight_decay=0.5, no_weight_decay=[])
    assert [group["weight_decay"] for group in build_optimizer(config, model).param_groups] == [0.5]


def test_groups_and_frozen_parameters_by_pattern(model: DbrxForCausalLM) -> None:
    config = OptimizerConfig(
        name="adamw",
        lr=0.1,
        weight_decay=0.5,
        param_groups=[ParamGroupConfig(match=["*.experts.*"], lr=0.01), ParamGroupConfig(match=["*.w1"], lr=0.7)],
        freeze=["transformer.wte.weight", "*.attn.*"],
    )
    groups = build_optimizer(config, model).param_groups
    by_lr = {lr: set().union(*(names(model, g) for g in groups if g["lr"] == lr)) for lr in (0.1, 0.01, 0.7)}
    assert by_lr[0.7] == set()
    assert by_lr[0.01] == {f"transformer.blocks.{b}.ffn.experts.mlp.{w}" for b in (0, 1) for w in ("w1", "v1", "w2")}
    assert not any("attn.Wqkv" in name or "wte" in name for name in by_lr[0.1])
    frozen = {name for name, param in model.named_parameters() if not param.requires_grad}
    assert len(frozen) == 5


@pytest.mark.parametrize("key", ["freeze", "no_weight_decay"])
def test_a_pattern_that_matches_nothing_is_refused(model: DbrxForCausalLM, key: str) -> None:
    config = OptimizerConfig(name="adamw", lr=0.1, **{key: ["*.qkv.*"]})
    message = rf"optimizer.{key} has '\*.qkv.\*', but this pattern matches no parameter; the names of parameters are:"
    with pytest.raises(ConfigError, match=message):
        build_optimizer(config, model)


def test_freezing_everything_is_refused(model: DbrxForCausalLM) -> None:
    with pytest.raises(ConfigError, match="freeze every parameter"):
        build_optimizer(OptimizerConfig(name="adamw", lr=0.1, freeze=["*"]), model)


@pytest.mark.parametrize("name", ["decoupled_adamw", "decoupled_lionw"])
def test_decoupled_decay_does_not_grow_with_the_peak_learning_rate(model: DbrxForCausalLM, name: str) -> None:
    config = OptimizerConfig(name=name, lr=1e-4, weight_decay=0.25, no_weight_decay=[])  # type: ignore[arg-type]
    optimizer = build_optimizer(config, model)
    for param in model.parameters():
        torch.nn.init.ones_(param)
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert all(torch.allclose(param, torch.full_like(param, 0.75)) for param in model.parameters())


def test_lion_is_the_sign_of_the_interpolated_momentum() -> None:
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(5))
    expected, moment = param.detach().clone(), torch.zeros(5)
    optimizer = DecoupledLionW([param], lr=0.1, betas=(0.9, 0.99), weight_decay=0.01)
    for _ in range(4):
        grad = torch.randn(5)
        param.grad = grad.clone()
        optimizer.step()
        expected = expected * (1 - 0.01) - 0.1 * torch.sign(0.9 * moment + 0.1 * grad)
        moment = 0.99 * moment + 0.01 * grad
    torch.testing.assert_close(param.detach(), expected)


def multiplier(config: SchedulerConfig, batch: int) -> float:
    state = SimpleNamespace(timestamp=Timestamp(batch=batch), max_duration=Time.from_batch(100), dataloader_len=None)
    return build_scheduler(config, CLOCK)(state, 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine_with_warmup", {0: 0, 5: 0.5, 10: 1, 55: 0.6, 100: 0.2}),
        ("linear_decay_with_warmup", {0: 0, 5: 0.5, 10: 1, 55: 0.6, 100: 0.2}),
        ("constant_with_warmup", {0: 0, 5: 0.5, 10: 1, 55: 1, 100: 1}),
        ("inv_sqrt_with_warmup", {0: 0, 5: 0.5, 10: 1, 40: 0.5, 90: 1 / 3}),
        ("wsd_with_warmup", {0: 0, 5: 0.5, 10: 1, 80: 1, 90: 0.6, 100: 0.2}),
    ],
)
def test_schedules(name: str, expected: dict[int, float]) -> None:
    alpha_f = 0.2 if "cosine" in name or "linear" in name or "wsd" in name else 0.0
    config = SchedulerConfig(name=name, t_warmup="10ba", alpha_f=alpha_f, t_decay="0.2dur")  # type: ignore[arg-type]
    assert {batch: multiplier(config, batch) for batch in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"name": "cosine_with_warmup", "t_warmup": "101ba"},
            "t_warmup is 101ba .101 batches., but the run has only 100",
        ),
        ({"name": "wsd_with_warmup", "t_warmup": "95ba"}, "t_decay is 0.1dur .10 batches., but after a warmup of 95"),
        ({"name": "inv_sqrt_with_warmup"}, "t_warmup is 0ba, but inv_sqrt_with_warmup"),
    ],
)
def test_invalid_schedules_are_rejected(changes: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        build_scheduler(SchedulerConfig(**changes), CLOCK)


def test_durations_become_batches() -> None:
    batches = {"7ba": 7, "801tok": 2, "1ep": 13, "2ep": 25, "0.1dur": 10, "0.011dur": 2, "1dur": 100}
    assert {text: CLOCK.batches(text) for text in batches} == batches


@pytest.mark.parametrize("text", ["10", "ba", "-1ba", "1.5ba", "10 steps", ""])
def test_invalid_durations_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"a duration must be a number and a unit|must be an integer"):
        parse_duration(text)
