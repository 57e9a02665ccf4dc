"""Compares the outputs and gradients of each moe_impl and attn_impl with plain torch in fp32 on the same rounded
inputs.

Shapes: T tokens, K experts per token, D d_model, E experts, H query heads, G key/value heads, C head_dim.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from train.models.attention.attention import Attention
from train.models.attention.backends import BACKENDS
from train.models.attention.layout import angles, find_documents, make_layout, resolve_attn_impl
from train.models.config import AttnConfig, FFNConfig, ModelConfig
from train.models.experts.assignment import assign
from train.models.experts.experts import MOE_IMPLS, resolve_moe_impl

BOUNDS = {torch.bfloat16: 3e-2, torch.float32: 1e-4}
"""Relative bounds. bf16 has 8 bits of precision: each rounding changes a result by up to 0.4%, and gradients are
rounded repeatedly."""
Compute = Callable[..., Tensor]


class Sizes(NamedTuple):
    lengths: tuple[int, ...]
    """Lengths of the documents."""
    model: ModelConfig


def sizes(*, tiny: bool) -> Sizes:
    """Return a config with DBRX's widths but fewer experts, because the reference copies the experts and their
    gradients in fp32."""
    if tiny:
        ffn = FFNConfig(ffn_hidden_size=24, moe_num_experts=4, moe_top_k=2)
        attn = AttnConfig(kv_n_heads=2)
        return Sizes((1, 9, 22), ModelConfig(d_model=32, n_heads=4, attn_config=attn, ffn_config=ffn, max_seq_len=64))
    ffn = FFNConfig(moe_num_experts=4, moe_top_k=2)
    return Sizes((1, 300, 467, 256), ModelConfig(ffn_config=ffn, max_seq_len=1024))


def compare(device: torch.device, *, tiny: bool) -> tuple[list[dict[str, str]], list[str]]:
    """Return a row for each implementation and dtype, and notes about implementations that cannot run here."""
    torch.manual_seed(0)
    lengths, model = sizes(tiny=tiny)
    rows, notes = [], []
    cases = [("experts", impl, partial(_of_experts, model, sum(lengths))) for impl in MOE_IMPLS]
    # FlexAttention needs torch's compiler, which takes longer than the rest of a tiny run.
    backends = [impl for impl in BACKENDS if not tiny or impl != "flex"]
    cases += [("attention", impl, partial(_of_attention, model, lengths)) for impl in backends]
    for dtype, bound in BOUNDS.items():
        for what, impl, case in cases:
            name = str(dtype).removeprefix("torch.")
            if why := _why_not(what, impl, device, dtype):
                notes.append(f"not compared: {what} by {impl} in {name} ({why})")
                continue
            rows.append({"what": what, "impl": impl, "dtype": name, **_row(case(impl, device, dtype), bound)})
    return rows, notes


def _why_not(what: str, impl: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return the reason why an implementation cannot run on this device, or None."""
    try:
        if what == "experts":
            resolve_moe_impl(impl, device, dtype)
        else:
            resolve_attn_impl(impl, device, dtype=dtype)
    except ValueError as error:
        return str(error)
    return None


def _row(differences: Iterator[tuple[str, float]], bound: float) -> dict[str, str]:
    try:
        found = dict(differences)
    except Exception as error:  # an error of a compiler or a kernel must not stop the other comparisons
        return {
            "worst": f"{type(error).__name__}: {str(error)[:200]}",
            "of": "",
            "bound": f"{bound:.0e}",
            "within": "no",
        }
    name = max(found, key=lambda name: found[name])
    within = "yes" if found[name] <= bound else "no"
    return {"worst": f"{found[name]:.1e}", "of": name, "bound": f"{bound:.0e}", "within": within}


def _differences(
    ours: Compute, reference: Compute, inputs: Mapping[str, Tensor], dtype: torch.dtype
) -> Iterator[tuple[str, float]]:
    """Yield max|difference| / max|reference| of the result and of each input's gradient. NaN counts as infinite."""
    rounded = [tensor.to(dtype) for tensor in inputs.values()]
    dy: Tensor | None = None
    results: list[list[Tensor]] = []
    for compute, leaves in ((reference, [tensor.float() for tensor in rounded]), (ours, rounded)):
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        y = compute(*leaves)
        dy = torch.randn_like(y).to(dtype) if dy is None else dy
        results.append([y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))])
    for name, exact, got in zip(("y", *inputs), *results, strict=True):
        difference = ((got.float() - exact).abs().max() / exact.abs().max()).item()
        yield name, difference if difference == difference else float("inf")


def _of_experts(
    model: ModelConfig, T: int, impl: str, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, float]]:
    ffn, D = model.ffn_config, model.d_model
    experts_TK = torch.rand(T, ffn.moe_num_experts, device=device).topk(ffn.moe_top_k).indices
    inputs = {"x": torch.randn(T, D, device=device), "weights": torch.rand(T, ffn.moe_top_k, device=device)}
    shape = (ffn.moe_num_experts * ffn.ffn_hidden_size, D)
    inputs |= {name: torch.randn(shape, device=device) * D**-0.5 for name in ("w1", "v1", "w2")}
    assignment = assign(experts_TK, ffn.moe_num_experts)

    def ours(x_TD: Tensor, weights_TK: Tensor, w1: Tensor, v1: Tensor, w2: Tensor) -> Tensor:
        return MOE_IMPLS[impl](x_TD, weights_TK, w1, v1, w2, assignment, False)

    return _differences(ours, partial(_plain_experts, experts_TK, ffn.moe_num_experts), inputs, dtype)


def _plain_experts(
    experts_TK: Tensor, n_experts: int, x_TD: Tensor, weights_TK: Tensor, w1: Tensor, v1: Tensor, w2: Tensor
) -> Tensor:
    y_TD = torch.zeros_like(x_TD)
    W1, V1, W2 = (w.unflatten(0, (n_experts, -1)) for w in (w1, v1, w2))
    for e in range(n_experts):
        token, choice = (experts_TK == e).nonzero(as_tuple=True)
        x = x_TD[token]
        y = (F.silu(x @ W1[e].T) * (x @ V1[e].T)) @ W2[e]
        y_TD = y_TD.index_add(0, token, weights_TK[token, choice].unsqueeze(1) * y)
    return y_TD


def _of_attention(
    model: ModelConfig, lengths: Sequence[int], impl: Any, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[str, float]]:
    attention = Attention(model).to(device, dtype)
    document_T = torch.arange(len(lengths), device=device).repeat_interleave(torch.tensor(lengths, device=device))
    documents = find_documents(torch.zeros_like(document_T)[None], document_T[None], model)
    config = replace(model, attn_config=replace(model.attn_config, attn_impl=impl))
    layout = make_layout(documents, config, dtype)
    inputs = {"x": torch.randn(sum(lengths), model.d_model, device=device)}
    inputs |= {
        name: torch.randn(param.shape, device=device) * model.d_model**-0.5
        for name, param in attention.named_parameters()
    }

    def ours(x_TD: Tensor, *weights: Tensor) -> Tensor:
        given = dict(zip(list(inputs)[1:], weights, strict=True))
        return torch.func.functional_call(attention, given, (x_TD, layout))

    def reference(x_TD: Tensor, Wqkv: Tensor, out_proj: Tensor) -> Tensor:
        return _plain_attention(model, document_T, documents.position_T, x_TD, Wqkv, out_proj)

    return _differences(ours, reference, inputs, dtype)


def _plain_attention(
    model: ModelConfig, document_T: Tensor, position_T: Tensor, x_TD: Tensor, Wqkv: Tensor, out_proj: Tensor
) -> Tensor:
    """Attention that computes all T x T scores and applies a mask."""
    attn, C = model.attn_config, model.head_dim
    qkv_TXC = (x_TD @ Wqkv.T).clamp(-(attn.clip_qkv or torch.inf), attn.clip_qkv or torch.inf).unflatten(1, (-1, C))
    q, k, v = qkv_TXC.transpose(0, 1).split((model.n_heads, attn.kv_n_heads, attn.kv_n_heads))
    cos_TC, sin_TC = angles(position_T, model, torch.float32)
    q, k = (x * cos_TC + torch.cat((-x[..., C // 2 :], x[..., : C // 2]), dim=-1) * sin_TC for x in (q, k))
    k, v = (x.repeat_interleave(model.n_heads // attn.kv_n_heads, dim=0) for x in (k, v))
    place_T = torch.arange(len(document_T), device=x_TD.device)
    sees_TT = (document_T[:, None] == document_T[None]) & (place_T[:, None] >= place_T[None])
    scores_HTT = (q @ k.transpose(1, 2) * C**-0.5).masked_fill(~sees_TT, -torch.inf)
    return (scores_HTT.softmax(-1) @ v).transpose(0, 1).flatten(1) @ out_proj.T
