"""Causal attention within each document of packed tokens, computed by torch's SDPA, by GEMMs over blocks of queries, by
FlexAttention or by flash-attn.

An AttentionBackend is created once per forward pass and used by all layers. `enter` moves the tokens [T, W] into the
order [P, W] that the kernels need, `attend` computes attention, and `leave` moves [P, W] back to [T, W]. Backends are
NamedTuples of tensors and plain numbers, so that FSDP2 and activation checkpointing can find the tensors.

Shapes: T packed tokens, P positions in a backend's token order (P >= T), W any width, H query heads, G key/value heads,
C head_dim, N documents.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from train.models.attention.blocks import make_blocks_backend
from train.models.attention.sdpa import make_sdpa_backend

_BLOCK = 128
"""The block size of FlexAttention, for queries and keys."""


class FlexBackend(NamedTuple):
    """Keeps the order of the tokens and pads them to the batch's number of positions, so that one compiled kernel
    can be used for all batches."""

    n_tokens: int
    n_places: int
    block_mask: Any
    """FlexAttention's BlockMask."""

    def enter(self, x_TW: Tensor) -> Tensor:
        return F.pad(x_TW, (0, 0, 0, self.n_places - self.n_tokens))

    def attend(self, q_PHC: Tensor, k_PGC: Tensor, v_PGC: Tensor, dropout_p: float) -> Tensor:
        assert not dropout_p, "resolve_attn_impl rejects dropout"
        q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q_PHC, k_PGC, v_PGC))
        attend = _flex_attention(compiled=q.device.type == "cuda")
        y = attend(q, k, v, block_mask=self.block_mask, enable_gqa=q.shape[1] != k.shape[1])
        return y.squeeze(0).transpose(0, 1)

    def leave(self, y_PW: Tensor) -> Tensor:
        return y_PW[: self.n_tokens]


@functools.cache
def _flex_attention(*, compiled: bool) -> Callable[..., Any]:
    """The function for FlexAttention: if `compiled`, a kernel that computes only the blocks that the mask selects;
    otherwise, a reference implementation that computes all T x T scores."""
    # Imported here, because it loads torch's compiler, which takes seconds.
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention


def make_flex_backend(lengths: list[int], n_positions: int, device: torch.device) -> FlexBackend:
    """Compute the block mask from the first and last document of each block, without a T x T mask."""
    from torch.nn.attention.flex_attention import BlockMask

    n_tokens, n_documents = sum(lengths), len(lengths)
    n_blocks = max(-(-n_positions // _BLOCK), 1)
    # Padding attends only within its block. The document numbers of padding are the highest, so that the numbers never
    # decrease.
    document_P = n_documents + torch.arange(n_blocks, device=device).repeat_interleave(_BLOCK)
    length_N = torch.tensor(lengths, dtype=torch.int64).to(device, non_blocking=True)
    document_P[:n_tokens] = torch.arange(n_documents, device=device).repeat_interleave(length_N, output_size=n_tokens)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (document_P[query] == document_P[key]) & (key <= query)

    first, last = document_P.view(n_blocks, _BLOCK)[:, 0], document_P.view(n_blocks, _BLOCK)[:, -1]
    block = torch.arange(n_blocks, device=device)
    earlier = block[:, None] > block[None, :]
    full = earlier & (first[None, :] == last[:, None])
    partly = (earlier & (last[None, :] >= first[:, None]) & ~full) | (block[:, None] == block[None, :])
    mask = BlockMask.from_kv_blocks(*_listed(partly), *_listed(full), BLOCK_SIZE=_BLOCK, mask_mod=sees)
    return FlexBackend(n_tokens, n_blocks * _BLOCK, mask)


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """For each block of queries, the number of selected blocks of keys, and the indices of all blocks of keys, with the
    selected ones first."""
    order = chosen.int().argsort(dim=1, descending=True, stable=True)
    return chosen.sum(1, dtype=torch.int32)[None, None], order.int()[None, None].contiguous()


class FlashBackend(NamedTuple):
    """Passes the packed tokens to flash-attn unchanged."""

    bounds: Tensor
    """int32 [N + 1]: the start of each document, and the end of the last one."""
    longest: int

    def enter(self, x_TW: Tensor) -> Tensor:
        return x_TW

    def attend(self, q_PHC: Tensor, k_PGC: Tensor, v_PGC: Tensor, dropout_p: float) -> Tensor:
        if not self.longest:
            return q_PHC
        attend = importlib.import_module("flash_attn").flash_attn_varlen_func
        return attend(
            q_PHC,
            k_PGC,
            v_PGC,
            cu_seqlens_q=self.bounds,
            cu_seqlens_k=self.bounds,
            max_seqlen_q=self.longest,
            max_seqlen_k=self.longest,
            dropout_p=dropout_p,
            causal=True,
        )

    def leave(self, y_PW: Tensor) -> Tensor:
        return y_PW


def make_flash_backend(lengths: list[int], n_positions: int, device: torch.device) -> FlashBackend:
    bounds = F.pad(torch.tensor(lengths, dtype=torch.int64).cumsum(0), (1, 0))
    return FlashBackend(bounds.int().to(device, non_blocking=True), max(lengths, default=0))


class AttentionBackend(Protocol):
    def enter(self, x_TW: Tensor, /) -> Tensor: ...

    def attend(self, q_PHC: Tensor, k_PGC: Tensor, v_PGC: Tensor, dropout_p: float, /) -> Tensor: ...

    def leave(self, y_PW: Tensor, /) -> Tensor: ...


BACKENDS: dict[str, Callable[[list[int], int, torch.device], AttentionBackend]] = {
    "sdpa": make_sdpa_backend,
    "blocks": make_blocks_backend,
    "flex": make_flex_backend,
    "flash": make_flash_backend,
}
