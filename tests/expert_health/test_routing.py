"""The metrics of each layer against simple calculations."""

import math

import numpy as np
import pytest

from train.expert_health.routing import RoutingSums, effective_experts, gradient_norms, layer_metrics, load_imbalance


def counts(*layers: list[int]) -> np.ndarray:
    return np.array(layers, dtype=np.float64)


def test_the_load_imbalance_is_the_maximum_over_the_mean() -> None:
    assert load_imbalance(counts([10, 20, 30, 0], [0, 0, 0, 0])).tolist() == [2.0, 1.0]


def test_effective_experts_is_the_share_of_experts_that_an_even_load_would_need() -> None:
    shares_LE = np.array([[0.25] * 4, [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    assert effective_experts(shares_LE) == pytest.approx([1.0, 0.5, 0.25])


def test_metrics_are_numbers_of_each_layer() -> None:
    sums = RoutingSums(
        counts_LE=counts([6, 2, 0, 0], [2, 2, 2, 2]),
        z_sums_L=np.array([8.0, 2.0]),
        logit_squares_L=np.array([64.0, 16.0]),
        top_k=2,
    )
    found = layer_metrics(sums)
    assert found["experts/layer_0/load/expert_0"] == 0.75
    assert found["experts/layer_0/dead"] == 2
    assert found["experts/layer_0/router_z"] == 2.0  # 4 tokens
    assert found["experts/layer_0/router_logit_rms"] == 2.0
    assert found["experts/layer_1/load_imbalance"] == found["experts/layer_1/effective_experts"] == 1.0
    assert len(found) == 2 * (5 + 4)


def test_without_a_token_nothing_is_divided_by_zero() -> None:
    nothing = np.zeros(1)
    sums = RoutingSums(counts_LE=counts([0, 0]), z_sums_L=nothing, logit_squares_L=nothing, top_k=1)
    assert all(math.isfinite(value) for value in layer_metrics(sums).values())


def test_gradient_norms_are_of_what_is_trained_in_a_layer() -> None:
    squares = {
        "transformer.blocks.10.ffn.router.layer.weight": 4.0,
        "transformer.blocks.10.ffn.experts.mlp.lora.w1.lora_A": 9.0,
        "transformer.blocks.10.ffn.experts.mlp.w1": 16.0,
        "transformer.blocks.10.norm_attn_norm.attn.Wqkv.weight": 100.0,
        "lm_head.weight": 100.0,
    }
    expected = {"experts/layer_10/router_grad_norm": 2.0, "experts/layer_10/experts_grad_norm": 5.0}
    assert gradient_norms(squares, squares.values()) == expected
