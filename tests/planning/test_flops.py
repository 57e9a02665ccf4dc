"""The FLOPs of a step equal those that torch's FlopCounterMode counts in the model."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from train.config.schema import FSDPConfig
from train.distributed.build_model import checkpoint_activations
from train.models.config import AttnConfig, FFNConfig, LoraConfig, ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.flops import Flops, Recompute, flops_by_part, flops_per_token
from train.models.lora.adapters import add_lora

TOKENS = 32


def small(*, moe_recompute: bool = False) -> ModelConfig:
    return ModelConfig(
        d_model=32,
        n_heads=4,
        n_layers=2,
        vocab_size=80,
        max_seq_len=TOKENS,
        attn_config=AttnConfig(kv_n_heads=2, attn_impl="sdpa"),
        ffn_config=FFNConfig(
            ffn_hidden_size=48, moe_num_experts=4, moe_top_k=2, moe_impl="torch", moe_recompute=moe_recompute
        ),
    )


def _addmm_flops(total: tuple[int, int], a: tuple[int, int], b: tuple[int, int], **_: object) -> int:
    return 2 * a[0] * a[1] * b[1]


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts attention as in our formula, over all pairs of tokens, and also in-place addmm, which torch does not
    count."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: _addmm_flops})
    with sdpa_kernel(SDPBackend.MATH), counter:
        yield counter


def counted(
    config: ModelConfig, lora: LoraConfig | None, freeze: Collection[str], recompute: Recompute
) -> tuple[int, set]:
    """The FLOPs of forward and backward of one row, and the names of the trained parameters."""
    model = DbrxForCausalLM(config)
    if lora is not None:
        add_lora(model, lora)
    for name, param in model.named_parameters():
        torch.nn.init.normal_(param, std=0.02)
        if any(fnmatch(name, pattern) for pattern in freeze):
            param.requires_grad_(False)
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    checkpoint_activations(model, FSDPConfig(activation_checkpointing=recompute))
    ids = torch.arange(TOKENS).view(1, -1)
    with counting() as counter:
        losses = model(ids, ids).losses_BS
        losses.sum().backward()
    return counter.get_total_flops(), trained


def total(parts: list[Flops]) -> int:
    return sum(part.total for part in parts)


@pytest.mark.parametrize("moe_recompute", [False, True])
@pytest.mark.parametrize("recompute", ["none", "block", "selective"])
def test_flops_of_a_whole_model(recompute: Recompute, moe_recompute: bool) -> None:
    config = small(moe_recompute=moe_recompute)
    found, trained = counted(config, None, (), recompute)
    assert TOKENS * total(flops_by_part(config, TOKENS, trained=trained, recompute=recompute)) == found


@pytest.mark.parametrize(
    "freeze", [("*.wte.*",), ("*.wte.*", "*.blocks.0.*"), ("*.wte.*", "*norm*", "*Wqkv*"), ("*.wte.*", "*.blocks.*")]
)
def test_flops_where_parameters_are_frozen(freeze: tuple[str, ...]) -> None:
    config = small()
    policies: tuple[Recompute, ...] = ("none", "selective")
    for recompute in policies:
        found, trained = counted(config, None, freeze, recompute)
        assert TOKENS * total(flops_by_part(config, TOKENS, trained=trained, recompute=recompute)) == found


@pytest.mark.parametrize("per_expert", [False, True])
@pytest.mark.parametrize("targets", [["out_proj"], ["w2"], ["attn", "experts", "router"]])
def test_flops_with_adapters(targets: list[str], per_expert: bool) -> None:
    lora = LoraConfig(r=4, alpha=8, target_modules=targets, per_expert=per_expert)
    cases: tuple[tuple[Recompute, bool], ...] = (("none", False), ("block", True), ("selective", True))
    for recompute, moe_recompute in cases:
        config = small(moe_recompute=moe_recompute)
        found, trained = counted(config, lora, (), recompute)
        assert TOKENS * total(flops_by_part(config, TOKENS, lora, trained=trained, recompute=recompute)) == (
            found - sums_on_cpu(config, lora, recompute)
        )


def sums_on_cpu(config: ModelConfig, lora: LoraConfig, recompute: Recompute) -> int:
    """FLOPs that exist only on a CPU. If w2 has an adapter, a bmm sums each token's expert outputs and the products of
    their shared A. Otherwise an elementwise kernel sums them."""
    if "w2" not in lora.targets:
        return 0
    width = config.d_model + (0 if lora.per_expert else lora.r)
    passes = 2 if recompute == "block" else 1
    return passes * 2 * TOKENS * config.n_layers * config.ffn_config.moe_top_k * width


def test_flops_of_the_132b_by_part_are_those_of_its_mfu() -> None:
    config = ModelConfig()
    # The norms' weights are not used in GEMMs.
    norms = 6 * (2 * config.n_layers + 1) * config.d_model
    assert total(flops_by_part(config, 4096)) == flops_per_token(config, 4096) - norms
