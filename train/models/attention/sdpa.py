"""Causal attention within each document of packed tokens, computed by torch's SDPA.

The interface is AttentionBackend in backends.py.

Shapes: T packed tokens, P positions in the backend's token order (P >= T), W any width, H query heads, G key/value
heads, C head_dim, N documents, L padded length of a call.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from train.models.device import is_simulated

_SLACK = 128
"""Computing this many tokens of padding still costs less than an additional kernel call."""
_STEP = 16
"""Padded lengths are multiples of this number. On a CPU, a kernel takes nearly twice as long for 15 or 31 tokens as for
16 or 32."""
_MOST_DOCUMENTS = 1 << 14
"""Maximum number of documents per call. CUDA kernels use the number of documents (some kernels, documents * heads) as a
grid dimension, which is limited to 65,535."""


class SdpaBackend(NamedTuple):
    """Documents of similar length are computed in one call of SDPA. Each document is padded at its end to the longest
    document of the call.

    Padding follows all real tokens of a document, so the causal kernels need no mask. Outputs at padding are discarded.
    In each call, the number of padding tokens is at most a quarter of the number of real tokens, or at most _SLACK. If
    torch has a fused kernel, memory is linear in the number of tokens. There is no fused kernel for dropout on a CPU,
    or for fp64 on a GPU. In these cases, memory grows with the square of the call's padded document length.
    """

    calls: list[tuple[int, int]]
    """For each call, the number of documents and their padded length."""
    source_P: Tensor | None
    """The index of the token at each position of the padded order. Padding repeats the last token of its document. None
    if the tokens are already in this order."""
    slot_T: Tensor | None
    """The position of each token in the padded order."""

    def enter(self, x_TW: Tensor) -> Tensor:
        if self.source_P is None or self.slot_T is None:
            return x_TW
        return _Pad.apply(x_TW, self.source_P, self.slot_T)  # pyright: ignore[reportReturnType]

    def attend(self, q_PHC: Tensor, k_PGC: Tensor, v_PGC: Tensor, dropout_p: float) -> Tensor:
        parts = [(call[0] * call[1], functools.partial(causal, call=call, dropout_p=dropout_p)) for call in self.calls]
        return apply_in_parts(parts, q_PHC, k_PGC, v_PGC)

    def leave(self, y_PW: Tensor) -> Tensor:
        if self.slot_T is None:
            return y_PW
        return _Unpad.apply(y_PW, self.slot_T)  # pyright: ignore[reportReturnType]


def apply_in_parts(parts: Sequence[tuple[int, Callable[..., Tensor]]], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Split q, k and v into consecutive parts, apply each part's function, and concatenate the results."""
    if not parts:
        return q
    if len(parts) == 1:
        # Avoids the copies that split and cat would make, in forward and in backward.
        return parts[0][1](q, k, v)
    split = zip(parts, *(x.split([places for places, _ in parts]) for x in (q, k, v)), strict=True)
    return torch.cat([attend(*given) for (_, attend), *given in split])


class _Pad(torch.autograd.Function):
    """Moves tokens to the padded order. Padding gets no gradient, because its outputs are not used."""

    @staticmethod
    def forward(ctx: Any, x_TW: Tensor, source_P: Tensor, slot_T: Tensor) -> Tensor:
        ctx.save_for_backward(slot_T)
        return x_TW.index_select(0, source_P)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (slot_T,) = ctx.saved_tensors
        return grad_outputs[0].index_select(0, slot_T), None, None


class _Unpad(torch.autograd.Function):
    """Moves tokens back from the padded order. This is the inverse of _Pad. Each position is used at most once, so
    backward needs no scatter-add."""

    @staticmethod
    def forward(ctx: Any, y_PW: Tensor, slot_T: Tensor) -> Tensor:
        ctx.save_for_backward(slot_T)
        ctx.places = y_PW.shape[0]
        return y_PW.index_select(0, slot_T)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (slot_T,), (grad_TW,) = ctx.saved_tensors, grad_outputs
        return grad_TW.new_zeros(ctx.places, grad_TW.shape[1]).index_copy_(0, slot_T, grad_TW), None


def causal(q: Tensor, k: Tensor, v: Tensor, call: tuple[int, int], dropout_p: float) -> Tensor:
    """One SDPA call over N documents of padded length L: maps q [N*L, H, C] and k, v [N*L, G, C] to [N*L, H, C]."""
    q_NHLC, k_NGLC, v_NGLC = (x.unflatten(0, call).transpose(1, 2) for x in (q, k, v))
    if is_simulated("cuda") and q.dtype in (torch.bfloat16, torch.float16):
        # This is the kernel that SDPA selects on a GPU. The tensors of a simulation are CPU tensors, for which SDPA
        # would select another kernel.
        y_NHLC = torch.ops.aten._scaled_dot_product_flash_attention(q_NHLC, k_NGLC, v_NGLC, dropout_p, True)[0]
        return y_NHLC.transpose(1, 2).flatten(0, 1)
    group = q_NHLC.shape[1] // k_NGLC.shape[1]
    grouped = group > 1 and _flash_takes_groups(q_NHLC, k_NGLC, v_NGLC, dropout_p)
    if group > 1 and not grouped:
        k_NGLC, v_NGLC = (x.repeat_interleave(group, dim=1) for x in (k_NGLC, v_NGLC))
    y_NHLC = F.scaled_dot_product_attention(
        q_NHLC, k_NGLC, v_NGLC, dropout_p=dropout_p, is_causal=True, enable_gqa=grouped
    )
    return y_NHLC.transpose(1, 2).flatten(0, 1)


def _flash_takes_groups(q_NHLC: Tensor, k_NGLC: Tensor, v_NGLC: Tensor, dropout_p: float) -> bool:
    """Whether a fused kernel supports grouped key/value heads for these tensors. If there is no such kernel (on a CPU,
    or in fp32), SDPA with enable_gqa would fall back to the unfused computation, which stores all L x L scores."""
    if q_NHLC.device.type != "cuda":
        return False
    params = torch.backends.cuda.SDPAParams(q_NHLC, k_NGLC, v_NGLC, None, dropout_p, True, True)
    return torch.backends.cuda.can_use_flash_attention(params)


def split_into_calls(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Return (number of documents, padded length) for each call. The lengths must be sorted in descending order.

    Documents are added to a call until another document would make the padding of the call exceed both a quarter of the
    call's real tokens and _SLACK. The longest document of the next call is then shorter than 4/5 of the longest
    document of this call, so there are O(log S) calls for any number of documents.
    """
    calls, first = [], 0
    while first < len(lengths):
        length, tokens, last = lengths[first], 0, first
        while last < min(len(lengths), first + _MOST_DOCUMENTS):
            if not _pads_little(length, last + 1 - first, tokens + lengths[last]):
                break
            tokens, last = tokens + lengths[last], last + 1
        rounded = -(-length // _STEP) * _STEP
        calls.append((last - first, rounded if _pads_little(rounded, last - first, tokens) else length))
        first = last
    return calls


def _pads_little(length: int, documents: int, tokens: int) -> bool:
    return length * documents - tokens <= max(_SLACK, tokens // 4)


def make_sdpa_backend(lengths: list[int], n_positions: int, device: torch.device) -> SdpaBackend:
    order = sorted(range(len(lengths)), key=lambda document: -lengths[document])
    calls = split_into_calls([lengths[document] for document in order])
    places = sum(documents * length for documents, length in calls)
    if places == sum(lengths) and order == list(range(len(lengths))):
        return SdpaBackend(calls, None, None)
    length_N, order_N = torch.tensor(lengths), torch.tensor(order)
    padded_N = torch.tensor([length for documents, length in calls for _ in range(documents)])
    token_N = (length_N.cumsum(0) - length_N)[order_N]
    place_N = padded_N.cumsum(0) - padded_N
    slot_offset_N = torch.empty_like(order_N).index_copy_(0, order_N, place_N - token_N)
    # Only tensors with one number per document are copied to the device; tensors of T elements are created on the
    # device.
    columns = torch.stack((length_N, slot_offset_N, padded_N, token_N, place_N, length_N[order_N] - 1))
    length_N, slot_offset_N, padded_N, token_N, place_N, last_N = columns.to(device, non_blocking=True)
    T, arange = sum(lengths), functools.partial(torch.arange, device=device)
    slot_T = arange(T) + slot_offset_N.repeat_interleave(length_N, output_size=T)
    token_P, place_P, last_P = (x.repeat_interleave(padded_N, output_size=places) for x in (token_N, place_N, last_N))
    source_P = token_P + torch.minimum(arange(places) - place_P, last_P)
    return SdpaBackend(calls, source_P, slot_T)
