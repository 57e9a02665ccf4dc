"""Invariance to packing and padding, and the parts of the model, each against a simple reference."""

import pytest
import torch
from torch import nn

from data.mds.row import IGNORED
from train.models.config import PRESETS, AttnConfig, FFNConfig, ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.experts.assignment import assign
from train.models.experts.experts import ExpertsMLP
from train.models.init import draw_rows, initialise
from train.models.lora.linear import Linear
from train.models.moe import load_balancing_loss, router_z_loss
from train.models.shapes import count_parameters


def make_config(**changes: object) -> ModelConfig:
    ffn = FFNConfig(ffn_hidden_size=24, moe_num_experts=8, moe_top_k=3)
    attn = AttnConfig(kv_n_heads=2, rope_theta=1e4, clip_qkv=0.6)
    shape = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 64, "vocab_size": 96, "initializer_range": 0.2}
    return ModelConfig(**{**shape, "attn_config": attn, "ffn_config": ffn, **changes})  # type: ignore[arg-type]


def make_model(config: ModelConfig, seed: int = 0) -> DbrxForCausalLM:
    model = DbrxForCausalLM(config)
    initialise(model, config, seed)
    return model


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def test_losses_are_the_cross_entropy_of_the_labelled_positions() -> None:
    model = make_model(make_config()).eval()
    ids, labels = torch.randint(0, 96, (2, 2, 13))
    labels[0, :9] = IGNORED
    out = model(ids, labels, return_logits=True)
    expected = nn.functional.cross_entropy(out.logits_BSV.mT, labels, reduction="none", ignore_index=IGNORED)
    torch.testing.assert_close(out.losses_BS, expected, rtol=1e-5, atol=1e-6)


def test_documents_do_not_see_one_another() -> None:
    model = make_model(make_config()).eval()
    ids = torch.randint(0, 96, (2, 20))
    documents = torch.tensor([[0] * 7 + [1] * 9 + [-1] * 4, [0] * 3 + [1] * 1 + [2] * 16])
    packed = model(ids, document_ids=documents, return_logits=True).logits_BSV
    for row, start, stop in [(0, 0, 7), (0, 7, 16), (1, 0, 3), (1, 3, 4), (1, 4, 20)]:
        alone = model(ids[row : row + 1, start:stop], return_logits=True).logits_BSV[0]
        assert relative(packed[row, start:stop], alone) < 1e-5


def test_padding_is_not_computed_routed_or_counted() -> None:
    model = make_model(make_config()).eval()
    ids = torch.randint(0, 96, (1, 12))
    documents = torch.tensor([[0] * 8 + [-1] * 4])
    padded = model(ids, labels=torch.where(documents < 0, IGNORED, ids), document_ids=documents)
    alone = model(ids[:, :8], labels=ids[:, :8])
    assert torch.equal(padded.counts_LE, alone.counts_LE)
    assert padded.counts_LE.sum() == 2 * 8 * 3
    torch.testing.assert_close(padded.prob_sums_LE, alone.prob_sums_LE)
    torch.testing.assert_close(padded.losses_BS[:, :8], alone.losses_BS)


def test_a_batch_of_padding_alone_has_zero_loss_and_zero_gradients() -> None:
    model = make_model(make_config())
    nothing = torch.full((2, 6), -1)
    out = model(torch.zeros_like(nothing), torch.full_like(nothing, IGNORED), nothing)
    (out.losses_BS.sum() + out.prob_sums_LE.sum()).backward()
    assert out.losses_BS.sum() == 0
    assert all(param.grad is not None and not param.grad.any() for param in model.parameters())


def slow_experts(mlp: ExpertsMLP, x: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
    """A reference that computes one token and one expert at a time."""
    w1, v1, w2 = (w.unflatten(0, (4, -1)) for w in (mlp.w1, mlp.v1, mlp.w2))
    rows = []
    for t in range(x.shape[0]):
        row = torch.zeros_like(x[t])
        for k, e in enumerate(experts[t].tolist()):
            row = row + weights[t, k] * (nn.functional.silu(w1[e] @ x[t]) * (v1[e] @ x[t])) @ w2[e]
        rows.append(row)
    return torch.stack(rows)


def test_experts_equal_the_obvious_loop_with_an_idle_expert_and_frozen_weights() -> None:
    torch.manual_seed(0)
    mlp = ExpertsMLP(8, FFNConfig(ffn_hidden_size=6, moe_num_experts=4, moe_top_k=2)).double()
    for param in mlp.parameters():
        nn.init.normal_(param)
    mlp.v1.requires_grad_(False)
    x = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(11, 2, dtype=torch.float64, requires_grad=True)
    experts = torch.tensor([[0, 1], [1, 3], [3, 0]]).repeat(4, 1)[:11]
    inputs = [x, weights, mlp.w1, mlp.w2]
    fast = mlp(x, weights, assign(experts, 4))
    slow = slow_experts(mlp, x, weights, experts)
    torch.testing.assert_close(fast, slow)
    grad = torch.randn_like(fast)
    fast_grads, slow_grads = (torch.autograd.grad(y, inputs, grad) for y in (fast, slow))
    for mine, obvious in zip(fast_grads, slow_grads, strict=True):
        torch.testing.assert_close(mine, obvious)
    assert not fast_grads[2].unflatten(0, (4, -1))[2].any()


@pytest.mark.parametrize("frozen", ["", "weight", "input"])
@pytest.mark.parametrize("rows", [0, 37])
def test_linear_equals_torchs(rows: int, frozen: str) -> None:
    linear, x, grad = Linear(256, 384), torch.randn(rows, 256), torch.randn(rows, 384)
    linear.weight.requires_grad_(frozen != "weight")
    x.requires_grad_(frozen != "input")
    needed = [tensor for tensor in (x, linear.weight) if tensor.requires_grad]
    y, expected = linear(x), nn.functional.linear(x, linear.weight)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(*(torch.autograd.grad(out, needed, grad) for out in (y, expected)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_router_statistics_match_the_routing() -> None:
    model = make_model(make_config()).eval()
    router = model.transformer.blocks[0].ffn.router
    x = torch.randn(50, 32)
    weights, experts, probs, _ = router(x)
    assert torch.allclose(weights.sum(1), torch.ones(50))
    assert torch.equal(experts, (x @ router.layer.weight.T).topk(3).indices)
    assert probs.dtype == torch.float32
    assert router.bfloat16()(x.bfloat16()).probs_TE.dtype == torch.float32


def test_jitter_is_in_training_alone_and_changes_the_routers_input_alone() -> None:
    config = make_config(ffn_config=FFNConfig(ffn_hidden_size=8, moe_num_experts=8, moe_top_k=3, moe_jitter_eps=0.5))
    router = make_model(config).transformer.blocks[0].ffn.router
    x = torch.randn(20, 32)
    before = x.clone()
    assert not torch.equal(router.train()(x).probs_TE, router.eval()(x).probs_TE)
    assert torch.equal(x, before)


def test_load_balancing_loss_is_one_when_even_and_is_megablocks_formula() -> None:
    even = load_balancing_loss(torch.full((2, 4), 5.0), torch.full((2, 4), 10), 20, 20, top_k=2)
    assert even == pytest.approx(1.0)
    L, E, K, T = 3, 5, 2, 17
    probs = torch.rand(L, T, E).softmax(-1)
    counts = torch.randint(0, 9, (L, E))
    # MegaBlocks' batched_load_balancing_loss: E / (L * T * k) * dot(tokens_per_expert, mean probabilities).
    expected = E / (L * T * K) * torch.dot(counts.flatten().float(), probs.mean(1).flatten())
    torch.testing.assert_close(load_balancing_loss(probs.sum(1), counts, T, T, K), expected)


def test_z_loss_is_the_mean_over_layers_and_tokens_of_squared_logsumexp() -> None:
    logits_LTE = torch.randn(3, 17, 5)
    z_sums_L = logits_LTE.logsumexp(-1).square().sum(1)
    expected = torch.stack([torch.logsumexp(logits, dim=1).square().mean() for logits in logits_LTE]).mean()
    torch.testing.assert_close(router_z_loss(z_sums_L, 17), expected)


def test_the_132b_on_meta_has_its_parameters() -> None:
    with torch.device("meta"):
        model = DbrxForCausalLM(ModelConfig())
    assert sum(param.numel() for param in model.parameters()) == 131_596_523_520


@pytest.mark.parametrize("preset", PRESETS)
def test_the_plan_counts_what_the_model_has(preset: str) -> None:
    changes = dict(PRESETS[preset])
    attn, ffn = AttnConfig(**changes.pop("attn_config", {})), FFNConfig(**changes.pop("ffn_config"))
    config = ModelConfig(**changes, attn_config=attn, ffn_config=ffn)
    with torch.device("meta"):
        model = DbrxForCausalLM(config)
    assert count_parameters(config)[0] == sum(param.numel() for param in model.parameters())


def test_initial_rows_do_not_depend_on_which_are_drawn() -> None:
    shape = (3000, 1000)
    whole = draw_rows(7, "a.weight", shape, 0, 3000, 0.5)
    assert torch.equal(draw_rows(7, "a.weight", shape, 1001, 2500, 0.5), whole[1001:2500])
    assert whole.std() == pytest.approx(0.5, rel=0.01)
    assert not torch.equal(draw_rows(7, "b.weight", shape, 0, 10, 0.5), whole[:10])
    assert not torch.equal(draw_rows(8, "a.weight", shape, 0, 10, 0.5), whole[:10])


def test_initialisation_scales_residual_projections_and_starts_norms_at_one() -> None:
    named = dict(make_model(make_config(d_model=64, initializer_range=0.1)).named_parameters())
    assert all(torch.equal(p, torch.ones_like(p)) for name, p in named.items() if "norm_" in name.split(".")[-2])
    w1, w2 = (named[f"transformer.blocks.1.ffn.experts.mlp.{w}"].std().item() for w in ("w1", "w2"))
    assert w1 == pytest.approx(0.1, rel=0.05)
    assert w2 == pytest.approx(0.1 / 2, rel=0.05)
    plain = make_model(make_config(d_model=64, initializer_range=0.1, scale_residual_init=False))
    assert plain.transformer.blocks[0].ffn.experts.mlp.w2.std().item() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_autocast_works_forward_and_backward(dtype: torch.dtype) -> None:
    model = make_model(make_config()).eval()
    ids, labels = torch.randint(0, 96, (2, 2, 13))
    full = model(ids, labels).losses_BS.mean()
    with torch.autocast("cpu", dtype):
        loss = model(ids, labels).losses_BS.mean()
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(full.item(), rel=0.05)
    assert all(param.grad is not None and param.grad.dtype == torch.float32 for param in model.parameters())
