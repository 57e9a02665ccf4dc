"""Causal attention on a CPU within each document of packed tokens, by GEMMs over blocks of queries. The
interface is AttentionBackend in backends.py.

The kernel behind torch's SDPA cuts keys into blocks of 512, computes whole squares of documents that are no longer, and
wants documents padded to a common length to take several in a call. Here a block of queries meets the keys up to its
own end. What softmax gives is computed again in backward, as flash attention does (Dao et al. 2022).

Shapes: T packed tokens, H query heads, G key/value heads, R = H/G, X = T*R, C head_dim; of a block M keys and, R for
each of its queries, N rows.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.models.attention.sdpa import causal, in_parts

_BLOCK = 64
"""Queries at a time: wide enough for GEMMs with R rows each, narrow enough that little is computed in vain."""
_LONGEST = 1024
"""Tokens of a document; from here on SDPA's kernel is the faster one."""

_ops: Any = torch.ops
_softmax_backward = _ops.aten._softmax_backward_data.out


class Block(NamedTuple):
    """A part of one document, or several whole ones that are short."""

    first: int
    """The token where its keys begin; start, if the block holds whole documents."""
    start: int
    end: int
    lengths: tuple[int, ...]
    """Tokens of each document in it."""


class Run(NamedTuple):
    """Documents one after the other, cut into blocks; or one that is left to SDPA, without."""

    n_tokens: int
    blocks: list[Block]
    """Counted from the run's first token."""


class BlocksBackend(NamedTuple):
    """The tokens in their order, without padding."""

    runs: list[Run]

    def enter(self, x_TW: Tensor) -> Tensor:
        return x_TW

    def attend(self, q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor, dropout_p: float) -> Tensor:
        assert not dropout_p, "resolve_attn_impl refuses it"
        parts = [(run.n_tokens, functools.partial(_attend, run=run)) for run in self.runs]
        return in_parts(parts, q_THC, k_TGC, v_TGC)

    def leave(self, y_TW: Tensor) -> Tensor:
        return y_TW


def _attend(q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor, run: Run) -> Tensor:
    if not run.blocks:
        # SDPA's kernels take documents in calls, here one in one.
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
    """Kept for backward: queries, keys and values."""

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
            # A document's last block meets all of its keys: it writes where the document's others add.
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
    """[G, T*R, C], a copy: the R heads of a token that share keys are rows of one matrix."""
    return x_THC.unflatten(1, (groups, -1)).transpose(0, 1).clone(memory_format=torch.contiguous_format).flatten(1, 2)


def _by_token(x_GXC: Tensor, n_tokens: int) -> Tensor:
    return x_GXC.unflatten(1, (n_tokens, -1)).transpose(0, 1).flatten(1, 2)


def _places(block: Block, q_GXC: Tensor, k_GTC: Tensor) -> tuple[slice, slice]:
    """The block's queries, and the keys that they meet."""
    heads = q_GXC.shape[1] // k_GTC.shape[1]
    return slice(block.start * heads, block.end * heads), slice(block.first, block.end)


def _memory(q_GXC: Tensor, k_GTC: Tensor, blocks: list[Block], n: int) -> list[Tensor]:
    """n times what the largest block's scores take: all blocks write to the same, which stays in the cache."""
    heads = q_GXC.shape[0] * q_GXC.shape[1] // k_GTC.shape[1]
    most = max((block.end - block.start) * (block.end - block.first) for block in blocks)
    return [q_GXC.new_empty(heads * most) for _ in range(n)]


def _shaped(memory: Tensor, shape: Sequence[int]) -> Tensor:
    return memory[: math.prod(shape)].view(shape)


def _softmax(q_GNC: Tensor, k_GMC: Tensor, block: Block, scores: Tensor, weights: Tensor) -> Tensor:
    """[G, N, M] in the memory of `weights`: what each query makes of each key's value."""
    shape = (q_GNC.shape[0], q_GNC.shape[1], k_GMC.shape[1])
    s_GNM = torch.bmm(q_GNC, k_GMC.transpose(1, 2), out=_shaped(scores, shape))
    n_queries = block.end - block.start
    # Keys before the block's start are seen by all of it.
    s_GNM[..., -n_queries:].unflatten(1, (n_queries, -1)).add_(_mask(block.lengths).unsqueeze(1))
    return torch.softmax(s_GNM, -1, out=_shaped(weights, shape))


@functools.lru_cache(maxsize=1024)
def _mask(lengths: tuple[int, ...]) -> Tensor:
    """[n, n] for n tokens of documents in a row: 0 where one sees another, else -inf."""
    document_n = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    sees_nn = (document_n[:, None] == document_n[None, :]).tril()
    return torch.zeros(sees_nn.shape).masked_fill_(~sees_nn, -torch.inf)
