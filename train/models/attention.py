"""Grouped-query attention with rotary positions, over packed documents that do not see one another.

Shapes: T tokens that are not padding, D d_model, H query heads, G key/value heads, C head_dim, B rows, S row length.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.config import ModelConfig


class Layout(NamedTuple):
    """Where the T tokens of a batch stand in its B rows, and which of them may see which."""

    n_rows: int
    row_len: int
    place_T: Tensor
    """Index of each token in the flattened [B*S] rows."""
    cos_TC: Tensor
    sin_TC: Tensor
    mask_B1SS: Tensor
    """True where a query may see a key: same document, not later."""


def make_layout(document_ids_BS: Tensor, head_dim: int, rope_theta: float, dtype: torch.dtype) -> Layout:
    """The layout of rows whose positions belong to document 0, 1, ...; -1 marks padding. Positions restart in each."""
    B, S = document_ids_BS.shape
    device = document_ids_BS.device
    index_S = torch.arange(S, device=device)
    starts_BS = torch.ones_like(document_ids_BS, dtype=torch.bool)
    starts_BS[:, 1:] = document_ids_BS[:, 1:] != document_ids_BS[:, :-1]
    first_BS = torch.where(starts_BS, index_S, 0).cummax(dim=1).values
    place_T = (document_ids_BS.flatten() >= 0).nonzero().squeeze(1)
    position_T = (index_S - first_BS).flatten()[place_T]
    # Angles in fp32 whatever the model's dtype: bf16 cannot tell late positions apart (as transformers does).
    inv_freq = 1.0 / rope_theta ** (torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angle_TC = torch.outer(position_T.float(), inv_freq).repeat(1, 2)
    # Padding is a document of its own (-1), so that no query is left without a key, which would give NaN.
    same_BSS = document_ids_BS[:, :, None] == document_ids_BS[:, None, :]
    mask_B1SS = (same_BSS & (index_S[:, None] >= index_S[None, :])).unsqueeze(1)
    return Layout(B, S, place_T, angle_TC.cos().to(dtype), angle_TC.sin().to(dtype), mask_B1SS)


def _rotate(x_THC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021) in the half-split form of GPT-NeoX, which DBRX has."""
    low, high = x_THC.chunk(2, dim=-1)
    return x_THC * cos_TC.unsqueeze(1) + torch.cat((-high, low), dim=-1) * sin_TC.unsqueeze(1)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_heads, self.kv_n_heads, self.head_dim = config.n_heads, config.attn_config.kv_n_heads, config.head_dim
        self.clip_qkv = config.attn_config.clip_qkv
        self.attn_pdrop = config.attn_config.attn_pdrop
        kv_width = self.kv_n_heads * self.head_dim
        self.widths = (config.d_model, kv_width, kv_width)
        self.Wqkv = nn.Linear(config.d_model, sum(self.widths), bias=False)
        self.out_proj = nn.Linear(config.d_model, config.d_model, bias=False)

    def forward(self, x_TD: Tensor, layout: Layout) -> Tensor:
        qkv = self.Wqkv(x_TD)
        if self.clip_qkv is not None:
            qkv = qkv.clamp(-self.clip_qkv, self.clip_qkv)
        q, k, v = qkv.split(self.widths, dim=-1)
        q_THC = _rotate(q.unflatten(-1, (self.n_heads, self.head_dim)), layout.cos_TC, layout.sin_TC)
        k_TGC = _rotate(k.unflatten(-1, (self.kv_n_heads, self.head_dim)), layout.cos_TC, layout.sin_TC)
        v_TGC = v.unflatten(-1, (self.kv_n_heads, self.head_dim))
        # Keys and values are repeated: enable_gqa on CPU would materialise S x S scores.
        group = self.n_heads // self.kv_n_heads
        y_BHSC = F.scaled_dot_product_attention(
            _to_rows(q_THC, layout),
            _to_rows(k_TGC, layout).repeat_interleave(group, dim=1),
            _to_rows(v_TGC, layout).repeat_interleave(group, dim=1),
            attn_mask=layout.mask_B1SS,
            dropout_p=self.attn_pdrop if self.training else 0.0,
        )
        y_TD = y_BHSC.transpose(1, 2).flatten(0, 1)[layout.place_T].flatten(1)
        return self.out_proj(y_TD)


def _to_rows(x_THC: Tensor, layout: Layout) -> Tensor:
    """[T, H, C] -> [B, H, S, C], zeros at the padding."""
    rows = x_THC.new_zeros(layout.n_rows * layout.row_len, *x_THC.shape[1:]).index_copy(0, layout.place_T, x_THC)
    return rows.unflatten(0, (layout.n_rows, layout.row_len)).transpose(1, 2)
