"""Activation checkpointing: less memory is kept, and the gradients are bitwise identical."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from scripts.bench.watch import Watch
from train.config.schema import FSDPConfig
from train.distributed.build_model import checkpoint_activations
from train.models.config import AttnConfig, FFNConfig, ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.init import initialise
from train.models.recompute import named_parameters

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
POLICIES = ["none", "block", "selective"]


def make_model(
    policy: str,
    device: str = "cpu",
    offload: bool = False,
    noise: float = 0.0,
    width: int = 32,
    attn_impl: Literal["auto", "sdpa", "blocks"] = "auto",
) -> DbrxForCausalLM:
    config = ModelConfig(
        d_model=width,
        n_heads=4,
        n_layers=3,
        max_seq_len=64,
        vocab_size=96,
        attn_config=AttnConfig(kv_n_heads=2, attn_pdrop=noise, attn_impl=attn_impl),
        ffn_config=FFNConfig(ffn_hidden_size=56, moe_num_experts=4, moe_top_k=2, moe_jitter_eps=noise),
        resid_pdrop=noise,
        emb_pdrop=noise,
        initializer_range=0.2,
    )
    model = DbrxForCausalLM(config)
    initialise(model, config, seed=0)
    checkpoint_activations(model, FSDPConfig(activation_checkpointing=policy, activation_cpu_offload=offload))  # type: ignore[arg-type]
    return model.to(device)


def forward(model: DbrxForCausalLM) -> Tensor:
    device = next(model.parameters()).device
    ids = torch.randint(0, 96, (4, 64), generator=torch.Generator().manual_seed(1)).to(device)
    documents = (torch.arange(64, device=device) >= 23).long().expand(4, 64)
    torch.manual_seed(2)
    out = model(ids, ids.roll(-1, 1), documents)
    return out.losses_BS.mean() + 0.1 * out.z_sums_L.mean() + (out.prob_sums_LE**2).mean()


def gradients(model: DbrxForCausalLM, autocast: bool) -> dict[str, Tensor]:
    with torch.autocast(next(model.parameters()).device.type, torch.bfloat16, enabled=autocast):
        loss = forward(model)
    loss.backward()
    return {"loss": loss.detach()} | {name: param.grad for name, param in named_parameters(model)}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("noise", [0.0, 0.2], ids=["", "dropout and jitter"])
@pytest.mark.parametrize("offload", [False, True], ids=["", "offload"])
@pytest.mark.parametrize("policy", POLICIES[1:])
def test_gradients_are_bitwise_identical(policy: str, offload: bool, noise: float, autocast: bool, device: str) -> None:
    plain = gradients(make_model("none", device, noise=noise), autocast)
    saved = gradients(make_model(policy, device, offload, noise), autocast)
    assert saved.keys() == plain.keys()
    for name, expected in plain.items():
        assert torch.equal(saved[name], expected), name


def test_selective_recomputes_no_gemm() -> None:
    flops = {}
    for policy in POLICIES:
        # Attention is recomputed: SDPA as one operation, `blocks` as GEMMs that would be counted.
        loss = forward(make_model(policy, attn_impl="sdpa"))
        with Watch() as watch:
            loss.backward()
        flops[policy] = watch.flops
    assert flops["selective"] == flops["none"]
    assert flops["block"] > 1.3 * flops["none"]


# `blocks` keeps no padding, and neither its result nor its sums, so there is less left to save.
@pytest.mark.parametrize(("attn_impl", "share"), [("sdpa", 0.65), ("blocks", 0.75)])
def test_selective_keeps_gemm_results_and_block_only_the_residual_stream(
    attn_impl: Literal["sdpa", "blocks"], share: float
) -> None:
    kept = {}
    for policy in POLICIES:
        model = make_model(policy, attn_impl=attn_impl)
        with Watch() as watch:
            loss = forward(model)
        kept[policy] = watch.now
        del loss
    # "block" keeps only the input of each block. "selective" also keeps the stream after attention, q, k, v, h1 and h2.
    T, D, W, K, F, L = 4 * 64, 32, 32 + 2 * 16, 2, 56, 3
    results = L * T * (D + W + 2 * K * F) * 4
    # The margin covers routing and random states: less than one more [T, D] in each block.
    assert results < kept["selective"] - kept["block"] < results + L * T * D * 4
    assert kept["selective"] < share * kept["none"]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_step_leaves_only_gradients_in_memory(policy: str) -> None:
    model, kept, ids = make_model(policy), [], torch.zeros(4, 64, dtype=torch.int64)
    with Watch() as watch:
        for _ in range(3):
            # The routers' sums are not part of the loss: backward does not release the tensors saved for them.
            model(ids, ids).losses_BS.mean().backward()
            kept.append(watch.now)
    # The first step allocated the gradients.
    assert kept[1] == kept[2]
