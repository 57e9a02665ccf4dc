"""The norm of gradients that are placed on ranks in different ways, and clipping by it, compared with torch's."""

from pathlib import Path

import pytest
import torch
from composer.utils import dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from tests.helpers.watched_run import Watch
from train.config.load import read_config
from train.distributed.clipping import not_finite_gradients, scale_to_norm, squared_norms, total_norm
from train.run.fit import fit

SIZES = [(50, 16), (33, 7), (16,), (3, 3), (1, 5)]
MAX_NORM = 0.25


def drawn(dtype: torch.dtype) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(5)
    return [torch.randn(size, generator=draw, dtype=dtype) for size in SIZES]


def with_gradients(gradients: list[torch.Tensor]) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = gradient
    return params


def clipped(gradients: list[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
    """The norm, and the gradients clipped to MAX_NORM."""
    params = with_gradients(gradients)
    squares_P = squared_norms(params)
    dist.all_reduce(squares_P)
    norm = total_norm(squares_P.tolist(), params)
    scale_to_norm(params, norm, MAX_NORM)
    return norm, [whole(param.grad) for param in params]


def whole(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def spread(dtype: torch.dtype) -> dict[str, tuple[float, list[torch.Tensor]]]:
    """The same gradients, distributed over 4 ranks in several ways."""
    torch.distributed.init_process_group("gloo")
    line, grid = init_device_mesh("cpu", (4,)), init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    ways = {
        "sharded": [(line, [Shard(0)])] * 5,
        "hybrid": [(grid, [Replicate(), Shard(0)])] * 5,
        "over both": [(grid, [Shard(0), Shard(0)])] * 5,
        "plain": [None] * 5,
        "different meshes": [
            (line, [Shard(0)]),
            (grid, [Replicate(), Shard(0)]),
            None,
            (grid["shard"], [Shard(0)]),
            None,
        ],
    }
    found = {}
    for name, places in ways.items():
        gradients = [
            gradient.clone() if place is None else distribute_tensor(gradient.clone(), place[0], place[1])
            for gradient, place in zip(drawn(dtype), places, strict=True)
        ]
        found[name] = clipped(gradients)
    return found


@pytest.mark.ranks
def test_each_element_counts_once_for_every_placement_of_gradients() -> None:
    gradients = drawn(torch.float64)
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    for found in run_ranks(spread, 4, torch.float64):
        for name, (its, clipped_gradients) in found.items():
            assert its == pytest.approx(norm, rel=1e-14), name
            for mine, gradient in zip(clipped_gradients, gradients, strict=True):
                assert torch.allclose(mine, gradient * MAX_NORM / (norm + 1e-6), rtol=1e-13, atol=0), name


def both(dtype: torch.dtype) -> list[tuple[list[torch.Tensor], list[torch.Tensor], bool]]:
    """Gradients clipped by our code and by torch, and whether torch's are exact: sharded, then plain."""
    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    pairs = []
    for sharded in (True, False):
        placements: list[Placement] = [Shard(0)]
        gradients = [
            distribute_tensor(gradient, mesh, placements) if sharded else gradient for gradient in drawn(dtype)
        ]
        mine = clipped([gradient.clone() for gradient in gradients])[1]
        params = with_gradients(gradients)
        norm = torch.nn.utils.clip_grad_norm_(params, MAX_NORM)
        # torch 2.7 keeps the norm in parts and adds 1e-6 to each of them.
        exact = not isinstance(norm, DTensor) or all(placement.is_replicate() for placement in norm.placements)
        pairs.append((mine, [whole(param.grad) for param in params], exact))
    return pairs


@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 2])
def test_clipping_is_bitwise_equal_to_torchs(world_size: int) -> None:
    for mine, torchs, exact in run_ranks(both, world_size, torch.float32)[0]:
        rtol = 0.0 if exact else 1e-6
        assert all(torch.allclose(a, b, rtol=rtol, atol=0) for a, b in zip(mine, torchs, strict=True))


def test_small_gradients_are_not_changed() -> None:
    gradients = [gradient * 1e-3 for gradient in drawn(torch.float32)]
    assert all(torch.equal(a, b) for a, b in zip(clipped([*gradients])[1], gradients, strict=True))


def test_a_missing_gradient_counts_as_zero() -> None:
    params = [*with_gradients(drawn(torch.float32)), nn.Parameter(torch.zeros(3))]
    squares_P = squared_norms(params).tolist()
    assert squares_P[-1] == 0
    assert total_norm(squares_P, params) == total_norm(squares_P[:-1], params[:-1])
    assert squared_norms([nn.Parameter(torch.zeros(3))]).tolist() == [0.0]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e30])
def test_gradients_without_a_finite_norm_are_named(number: float) -> None:
    gradients = drawn(torch.float32)
    gradients[2][3] = number
    named = list(zip("abcde", with_gradients(gradients), strict=True))
    assert not_finite_gradients(named) == ["c"]
    assert not torch.isfinite(squared_norms([param for _, param in named]).sum())


def trained(path: str, overrides: list[list[str]]) -> list[tuple[list[float], dict[str, torch.Tensor]]]:
    results = []
    for each in overrides:
        watch = Watch(None)
        fit(read_config(path, each), callbacks=[watch], dtype=torch.float64)
        results.append((list(watch.losses.values()), watch.weights))
    return results


@pytest.mark.ranks
def test_clipped_steps_of_sgd_are_those_of_one_rank(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    same = [
        *["max_duration=5ba", "save_folder=null", "eval_loader=null", "optimizer={name: sgd, lr: 0.5}"],
        *["model.resid_pdrop=0", "model.emb_pdrop=0", "model.attn_config.attn_pdrop=0", "model.n_layers=1"],
        *["model.ffn_config.moe_jitter_eps=0", "model.ffn_config.moe_loss_weight=0"],
        "algorithms.gradient_clipping.clipping_threshold=0.1",
    ]
    one = run_ranks(trained, 1, path, [same])[0][0]
    ways = [same, [*same, "fsdp_config=null"]]
    for losses, weights in run_ranks(trained, 2, path, ways)[0]:
        assert losses == pytest.approx(one[0], rel=1e-6)  # logged in fp32
        for name, weight in weights.items():
            assert torch.allclose(weight, one[1][name.removeprefix("module.")], rtol=1e-11, atol=1e-13), name
