"""Causal attention on a CPU within each document of packed tokens, computed by GEMMs over blocks of queries.

The interface is AttentionBackend in backends.py. The CPU kernel that torch's SDPA calls splits keys into blocks of 512.
For documents of fewer than 512 tokens, it computes the complete score matrix, including the masked half. It can process
several documents in one call only if they are padded to the same length. Here, the scores of a block of queries are
computed only for the keys up to the end of the block. The softmax is recomputed in backward, as in flash attention (Dao
et al. 2022).

Shapes: T packed tokens, H query heads, G key/value heads, R = H/G, X = T*R, C head_dim. A block has M keys, and N rows
(R for each of its queries).
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.models.attention.sdpa import apply_in_parts, causal

_BLOCK = 64
"""Queries per block: enough for efficient GEMMs (each query has R rows), and few enough that little work is spent on
masked scores."""
_LONGEST = 1024
"""Maximum length, in tokens, of a document that is split into blocks. For longer documents, SDPA's kernel is faster."""

_ops: Any = torch.ops
_softmax_backward = _ops.aten._softmax_backward_data.out


class Block(NamedTuple):
    """A part of one document, or several whole short documents."""

    first: int
    """The first token of the block's keys. Equal to start if the block contains whole documents."""
    start: int
    end: int
    lengths: tuple[int, ...]
    """Number of tokens of each document in the block."""


class Run(NamedTuple):
    """Consecutive documents that are split into blocks, or one long document, which SDPA computes without blocks."""

    n_tokens: int
    blocks: list[Block]
    """The blocks of the run. Their positions are relative to the run's first token."""


class BlocksBackend(NamedTuple):
    """Computes attention in blocks of queries. Keeps the order of the tokens, and needs no padding."""

    runs: list[Run]

    def enter(self, x_TW: Tensor) -> Tensor:
        return x_TW

    def attend(self, q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor, dropout_p: float) -> Tensor:
        assert not dropout_p, "resolve_attn_impl rejects dropout"
        parts = [(run.n_tokens, functools.partial(_attend, run=run)) for run in self.runs]
        return apply_in_parts(parts, q_THC, k_TGC, v_TGC)

    def leave(self, y_TW: Tensor) -> Tensor:
        return y_TW


def _attend(q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor, run: Run) -> Tensor:
    if not run.blocks:
        # The run is one long document, which a single call of SDPA computes.
        return causal(q_THC, k_TGC, v_TGC, (1, run.n_tokens), 0.0)
    return _Blocks.apply(q_THC, k_TGC, v_TGC, run.blocks)  # pyright: ignore[reportReturnType]


def make_blocks_backend(lengths: list[int], n_positions: int, device: torch.device) -> BlocksBackend:
    runs: list[tuple[int, list[Block]]] = []
    for length in lengths:
        if length > _LONGEST:
            runs.append((length, []))
            continue
        if not runs or not runs[-1][1]:
            runs.append((0, []))
        start, blocks = runs[-1]
        if blocks and length + blocks[-1].end - blocks[-1].first <= _BLOCK:
            first = blocks[-1].first
            blocks[-1] = Block(first, first, start + length, (*blocks[-1].lengths, length))
        else:
            n_parts = -(-length // _BLOCK)
            cuts = [length * part // n_parts for part in range(n_parts + 1)]
            blocks += [Block(start, start + a, start + b, (b - a,)) for a, b in itertools.pairwise(cuts)]
        runs[-1] = (start + length, blocks)
    return BlocksBackend([Run(*run) for run in runs])


class _Blocks(torch.autograd.Function):
    """Attention over blocks. Only queries, keys and values are saved for backward."""

    @staticmethod
    def forward(ctx: Any, q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor, blocks: list[Block]) -> Tensor:
        q_GXC, k_GTC, v_GTC = (_by_group(x, k_TGC.shape[1]) for x in (q_THC, k_TGC, v_TGC))
        q_GXC.mul_(q_GXC.shape[2] ** -0.5)
        y_GXC = torch.empty_like(q_GXC)
        scores, weights = _memory(q_GXC, k_GTC, blocks, 2)
        for block in blocks:
            rows, keys = _places(block, q_GXC, k_GTC)
            p_GNM = _softmax(q_GXC[:, rows], k_GTC[:, keys], block, scores, weights)
            torch.bmm(p_GNM, v_GTC[:, keys], out=y_GXC[:, rows])
        ctx.save_for_backward(q_GXC, k_GTC, v_GTC)
        ctx.blocks = blocks
        return _by_token(y_GXC, q_THC.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (dy_THC,) = grad_outputs
        q_GXC, k_GTC, v_GTC = ctx.saved_tensors
        dy_GXC = _by_group(dy_THC, k_GTC.shape[0])
        dq_GXC, dk_GTC, dv_GTC = (torch.empty_like(x) for x in (q_GXC, k_GTC, v_GTC))
        scores, weights, products = _memory(q_GXC, k_GTC, ctx.blocks, 3)
        first = None
        for block in reversed(ctx.blocks):
            rows, keys = _places(block, q_GXC, k_GTC)
            q_GNC, k_GMC, dy_GNC = q_GXC[:, rows], k_GTC[:, keys], dy_GXC[:, rows]
            p_GNM = _softmax(q_GNC, k_GMC, block, scores, weights)
            dp_GNM = torch.bmm(dy_GNC, v_GTC[:, keys].transpose(1, 2), out=_shaped(products, p_GNM.shape))
            ds_GNM = _softmax_backward(dp_GNM, p_GNM, -1, p_GNM.dtype, grad_input=_shaped(scores, p_GNM.shape))
            torch.bmm(ds_GNM, k_GMC, out=dq_GXC[:, rows])
            # The last block of a document is computed first. It covers all keys of the document, so it initializes the
            # gradients of the keys, and the other blocks add to these gradients.
            for d_GTC, left_GNM, right_GNC in ((dv_GTC, p_GNM, dy_GNC), (dk_GTC, ds_GNM, q_GNC)):
                if block.first == first:
                    d_GTC[:, keys].baddbmm_(left_GNM.transpose(1, 2), right_GNC)
                else:
                    torch.bmm(left_GNM.transpose(1, 2), right_GNC, out=d_GTC[:, keys])
            first = block.first
        dq_GXC.mul_(q_GXC.shape[2] ** -0.5)
        dq_THC, dk_TGC, dv_TGC = (_by_token(x, dy_THC.shape[0]) for x in (dq_GXC, dk_GTC, dv_GTC))
        return dq_THC, dk_TGC, dv_TGC, None


def _by_group(x_THC: Tensor, groups: int) -> Tensor:
    """Copy x to [G, T*R, C]. The R heads of a token that share keys become rows of one matrix."""
    return x_THC.unflatten(1, (groups, -1)).transpose(0, 1).clone(memory_format=torch.contiguous_format).flatten(1, 2)


def _by_token(x_GXC: Tensor, n_tokens: int) -> Tensor:
    return x_GXC.unflatten(1, (n_tokens, -1)).transpose(0, 1).flatten(1, 2)


def _places(block: Block, q_GXC: Tensor, k_GTC: Tensor) -> tuple[slice, slice]:
    """The rows of the block's queries in q_GXC, and the tokens of its keys in k_GTC."""
    heads = q_GXC.shape[1] // k_GTC.shape[1]
    return slice(block.start * heads, block.end * heads), slice(block.first, block.end)


def _memory(q_GXC: Tensor, k_GTC: Tensor, blocks: list[Block], n: int) -> list[Tensor]:
    """n buffers, each large enough for the scores of the largest block. All blocks use the same buffers, so that these
    buffers stay in the CPU cache."""
    heads = q_GXC.shape[0] * q_GXC.shape[1] // k_GTC.shape[1]
    most = max((block.end - block.start) * (block.end - block.first) for block in blocks)
    return [q_GXC.new_empty(heads * most) for _ in range(n)]


def _shaped(memory: Tensor, shape: Sequence[int]) -> Tensor:
    return memory[: math.prod(shape)].view(shape)


def _softmax(q_GNC: Tensor, k_GMC: Tensor, block: Block, scores: Tensor, weights: Tensor) -> Tensor:
    """Compute the attention weights [G, N, M], and write them to `weights`."""
    shape = (q_GNC.shape[0], q_GNC.shape[1], k_GMC.shape[1])
    s_GNM = torch.bmm(q_GNC, k_GMC.transpose(1, 2), out=_shaped(scores, shape))
    n_queries = block.end - block.start
    # Only the keys of the block are masked, because all its queries attend to all earlier keys.
    s_GNM[..., -n_queries:].unflatten(1, (n_queries, -1)).add_(_mask(block.lengths).unsqueeze(1))
    return torch.softmax(s_GNM, -1, out=_shaped(weights, shape))


@functools.lru_cache(maxsize=1024)
def _mask(lengths: tuple[int, ...]) -> Tensor:
    """The attention mask [n, n] of the n tokens of consecutive documents: 0 where a query attends to a key, otherwise
    -inf."""
    document_n = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    sees_nn = (document_n[:, None] == document_n[None, :]).tril()
    return torch.zeros(sees_nn.shape).masked_fill_(~sees_nn, -torch.inf)
