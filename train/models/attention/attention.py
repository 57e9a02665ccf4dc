"""Grouped-query attention with rotary embedding over packed documents. Tokens attend only within their document.

Shapes: T tokens that are not padding, P positions in the backend's token order, W width of queries, keys and values, D
d_model, H query heads, G key/value heads, C head_dim.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from train.models.attention.layout import Layout
from train.models.config import ModelConfig
from train.models.lora.linear import Linear

_hardtanh_backward: Any = torch.ops.aten.hardtanh_backward


class _ClipAndRotate(torch.autograd.Function):
    """Clamps queries, keys and values [P, W] to [-clip, clip], and applies the rotary embedding to queries and keys.
    This function reads and writes the tensors only a few times; the same operations under torch's autograd would read
    and write the tensors about a dozen times.

    The rotary embedding (Su et al. 2021) has the half-split form of GPT-NeoX, as in DBRX. If the angles have a wider
    dtype than the queries and keys, as under autocast, the rotary embedding is computed in the dtype of the angles.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv_PW: Tensor, cos_PC: Tensor, sin_PC: Tensor, clip: float | None, n_heads: int, kv_n_heads: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(qkv_PW, cos_PC, sin_PC)
        ctx.heads, ctx.bound = (n_heads, kv_n_heads, kv_n_heads), None
        if clip is not None and ctx.needs_input_grad[0]:
            ctx.bound = gradient_bound(clip, qkv_PW.dtype)
        clipped_PW = qkv_PW.clone() if clip is None else qkv_PW.clamp(-clip, clip)
        qk_PXC, v_PGC = clipped_PW.unflatten(1, (-1, cos_PC.shape[1])).split((n_heads + kv_n_heads, kv_n_heads), dim=1)
        turned = torch.promote_types(qkv_PW.dtype, cos_PC.dtype)
        qk_PXC = _rotate(qk_PXC, cos_PC, sin_PC, out=torch.empty_like(qk_PXC, dtype=turned)).to(qkv_PW.dtype)
        q_PHC, k_PGC = qk_PXC.split((n_heads, kv_n_heads), dim=1)
        return q_PHC, k_PGC, v_PGC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        qkv_PW, cos_PC, sin_PC = ctx.saved_tensors
        dq_PHC, dk_PGC, dv_PGC = grad_outputs
        turned = torch.promote_types(qkv_PW.dtype, cos_PC.dtype)
        dqkv_PXC = torch.empty_like(qkv_PW, dtype=turned).unflatten(1, (-1, cos_PC.shape[1]))
        to_q, to_k, to_v = dqkv_PXC.split(ctx.heads, dim=1)
        _rotate(dq_PHC, cos_PC, -sin_PC, out=to_q)
        _rotate(dk_PGC, cos_PC, -sin_PC, out=to_k)
        to_v.copy_(dv_PGC)
        dqkv_PW = dqkv_PXC.flatten(1).to(qkv_PW.dtype)
        if ctx.bound is not None:
            dqkv_PW = _hardtanh_backward(dqkv_PW, qkv_PW, -ctx.bound, ctx.bound)
        return dqkv_PW, None, None, None, None, None


def _rotate(x_PHC: Tensor, cos_PC: Tensor, sin_PC: Tensor, out: Tensor) -> Tensor:
    cos_P1C, sin_P1C = cos_PC.unsqueeze(1), sin_PC.unsqueeze(1)
    (low, high), (sin_low, sin_high) = x_PHC.chunk(2, dim=-1), sin_P1C.chunk(2, dim=-1)
    y_low, y_high = torch.mul(x_PHC, cos_P1C, out=out).chunk(2, dim=-1)
    # addcmul is not used, because in bf16 it rounds once, whereas transformers rounds twice.
    y_low.sub_(high * sin_low)
    y_high.add_(low * sin_high)
    return out


@functools.cache
def gradient_bound(clip: float, dtype: torch.dtype) -> float:
    """The smallest magnitude at which an input gets no gradient. This is the clip value in this dtype. If the installed
    torch's clamp passes the gradient of an input that equals the clip value (as in torch 2.7, but not in 2.15), the
    result is the next larger number."""
    # These hooks replace those of activation checkpointing, which would otherwise include the tensors that are saved
    # here.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        x = torch.ones((), requires_grad=True)
        (dx,) = torch.autograd.grad(x.clamp(-1.0, 1.0), x)
    # torch.nextafter does not support fp16.
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    return (torch.tensor(clip, dtype=dtype).view(bits) + bool(dx)).view(dtype).item()


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.kv_n_heads, self.head_dim = config.n_heads, config.attn_config.kv_n_heads, config.head_dim
        self.clip_qkv = config.attn_config.clip_qkv
        self.attn_pdrop = config.attn_config.attn_pdrop
        kv_width = self.kv_n_heads * self.head_dim
        self.Wqkv = Linear(config.d_model, config.d_model + 2 * kv_width)
        self.out_proj = Linear(config.d_model, config.d_model)

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        return self.attend(self.Wqkv(x_TD), layout)

    def attend(self, qkv_TW: Tensor, layout: Layout) -> Tensor:
        """Compute the attention layer from the output of its first GEMM. The second GEMM is the last operation, so that
        selective activation checkpointing does not repeat it."""
        q_PHC, k_PGC, v_PGC = _ClipAndRotate.apply(  # pyright: ignore[reportGeneralTypeIssues]
            layout.backend.enter(qkv_TW), layout.cos_PC, layout.sin_PC, self.clip_qkv, self.n_heads, self.kv_n_heads
        )
        dropout_p = self.attn_pdrop if self.training else 0.0
        y_PHC = layout.backend.attend(q_PHC, k_PGC, v_PGC, dropout_p)
        return self.out_proj(layout.backend.leave(y_PHC.flatten(1)))
