"""Grouped-query attention with rotary positions, over packed documents that do not see one another.

Shapes: T tokens that are not padding, P places in the plan's order, W width of queries, keys and values, D d_model,
H query heads, G key/value heads, C head_dim.
"""

import torch
from torch import Tensor, nn

from train.models.config import ModelConfig
from train.models.layout import Layout
from train.models.linear import Linear


def _rotate(x_PHC: Tensor, cos_PC: Tensor, sin_PC: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021) in the half-split form of GPT-NeoX, which DBRX has."""
    low, high = x_PHC.chunk(2, dim=-1)
    return x_PHC * cos_PC.unsqueeze(1) + torch.cat((-high, low), dim=-1) * sin_PC.unsqueeze(1)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.kv_n_heads, self.head_dim = config.n_heads, config.attn_config.kv_n_heads, config.head_dim
        self.clip_qkv = config.attn_config.clip_qkv
        self.attn_pdrop = config.attn_config.attn_pdrop
        kv_width = self.kv_n_heads * self.head_dim
        self.widths = (config.d_model, kv_width, kv_width)
        self.Wqkv = Linear(config.d_model, sum(self.widths))
        self.out_proj = Linear(config.d_model, config.d_model)

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        return self.attend(self.Wqkv(x_TD), layout)

    def attend(self, qkv_TW: Tensor, layout: Layout) -> Tensor:
        """What follows the first GEMM; the second comes last, so that selective checkpointing need not repeat it."""
        if self.clip_qkv is not None:
            qkv_TW = qkv_TW.clamp(-self.clip_qkv, self.clip_qkv)
        q, k, v = layout.plan.enter(qkv_TW).split(self.widths, dim=-1)
        v_PGC = v.unflatten(-1, (self.kv_n_heads, self.head_dim))
        q_PHC = _rotate(q.unflatten(-1, (self.n_heads, self.head_dim)), layout.cos_PC, layout.sin_PC)
        k_PGC = _rotate(k.unflatten(-1, (self.kv_n_heads, self.head_dim)), layout.cos_PC, layout.sin_PC)
        dropout_p = self.attn_pdrop if self.training else 0.0
        # Under autocast the angles are in fp32, and so is what they turned.
        y_PHC = layout.plan.attend(q_PHC.to(v.dtype), k_PGC.to(v.dtype), v_PGC, dropout_p)
        return self.out_proj(layout.plan.leave(y_PHC.flatten(1)))
