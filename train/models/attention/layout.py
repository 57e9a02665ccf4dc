"""The layout of a batch: packed documents, positions that restart in each document, and the attention backend.

Shapes: B rows, S row length, T tokens that are not padding, N documents, P positions in the attention backend's token
order, C head_dim.
"""

import functools
import importlib
import importlib.util
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from train.models.attention.backends import BACKENDS, AttentionBackend
from train.models.config import ModelConfig


class Documents(NamedTuple):
    lengths: list[int]
    """The length of each document, row by row."""
    n_positions: int
    """B * S, including padding."""
    place_T: Tensor
    """Index of each token in the flattened [B*S] rows."""
    position_T: Tensor
    """The position of each token in its document."""


class Layout(NamedTuple):
    """Data that all layers share. Created once per forward pass, outside of activation checkpointing."""

    place_T: Tensor
    """Index of each token in the flattened [B*S] rows."""
    cos_PC: Tensor
    sin_PC: Tensor
    backend: AttentionBackend


def find_documents(input_ids_BS: Tensor, document_ids_BS: Tensor, config: ModelConfig) -> Documents:
    """Find the documents of a batch. A document is a run of equal document_ids in a row; -1 marks padding.

    Raises ValueError for rows longer than max_seq_len and for tokens outside the vocabulary. Outside the experts, this
    is the only device synchronization of the model: the range of the token ids is copied to the host together with the
    documents.
    """
    B, S = document_ids_BS.shape
    if config.max_seq_len < S:
        raise ValueError(f"a row has {S} positions, but the model's max_seq_len is {config.max_seq_len}")
    real_BS = document_ids_BS >= 0
    low, high = torch.where(real_BS, input_ids_BS, 0).aminmax()
    host = torch.cat((document_ids_BS.flatten(), low.view(1), high.view(1))).cpu()
    if host[-2] < 0 or host[-1] >= config.vocab_size:
        _raise_unknown_token(input_ids_BS, real_BS, config.vocab_size)
    ids_BS = host[:-2].view(B, S)
    starts_BS = torch.ones(B, S, dtype=torch.bool)
    starts_BS[:, 1:] = ids_BS[:, 1:] != ids_BS[:, :-1]
    start_N = starts_BS.flatten().nonzero().squeeze(1)
    length_N = start_N.diff(append=torch.tensor([B * S]))
    kept_N = ids_BS.flatten()[start_N] >= 0
    start_N, length_N = start_N[kept_N], length_N[kept_N]
    lengths = length_N.tolist()
    first_N = length_N.cumsum(0) - length_N
    # Only one number per document is copied to the device; tensors of T elements are created on the device.
    columns = torch.stack((length_N, first_N, start_N - first_N)).to(document_ids_BS.device, non_blocking=True)
    length_N, first_N, shift_N = columns
    T = sum(lengths)
    first_T, shift_T = (x.repeat_interleave(length_N, output_size=T) for x in (first_N, shift_N))
    token_T = torch.arange(T, device=document_ids_BS.device)
    return Documents(lengths, B * S, token_T + shift_T, token_T - first_T)


def _raise_unknown_token(input_ids_BS: Tensor, real_BS: Tensor, vocab_size: int) -> None:
    row, position = (real_BS & ((input_ids_BS < 0) | (input_ids_BS >= vocab_size))).nonzero()[0].tolist()
    token = int(input_ids_BS[row, position])
    raise ValueError(
        f"token id {token} at row {row}, position {position} is outside the vocabulary of {vocab_size}: use the "
        "tokenizer that the data was prepared with, or increase model.vocab_size"
    )


def make_layout(documents: Documents, config: ModelConfig, dtype: torch.dtype) -> Layout:
    """The layout for activations of this dtype. Raises ValueError if attn_impl is not available on the device."""
    device = documents.place_T.device
    autocast = torch.is_autocast_enabled(device.type)
    attn = config.attn_config
    computed = torch.get_autocast_dtype(device.type) if autocast else dtype
    impl = resolve_attn_impl(attn.attn_impl, device, dtype=computed, attn_pdrop=attn.attn_pdrop)
    backend = BACKENDS[impl](documents.lengths, documents.n_positions, device)
    position_P = backend.enter(documents.position_T.unsqueeze(1)).squeeze(1)
    return Layout(documents.place_T, *angles(position_P, config, dtype), backend)


def angles(position_P: Tensor, config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the RoPE angles [P, C]. As in transformers, the angles are computed in fp32 for every dtype,
    because bf16 cannot represent large positions exactly."""
    inv_freq = 1.0 / config.attn_config.rope_theta ** (
        torch.arange(0, config.head_dim, 2, device=position_P.device, dtype=torch.float32) / config.head_dim
    )
    angle_PC = torch.outer(position_P.float(), inv_freq).repeat(1, 2)
    return angle_PC.cos().to(dtype), angle_PC.sin().to(dtype)


def resolve_attn_impl(
    attn_impl: str, device: torch.device, *, dtype: torch.dtype | None = None, attn_pdrop: float = 0.0
) -> str:
    """Return the attention backend for this device: `sdpa`, `blocks`, `flex` or `flash`.

    dtype: the dtype of the attention computation. If dtype is None, only the device is checked. Raises ValueError with
    the reason if the selected backend is not available. `auto` never raises, but falls back to SDPA.
    """
    if attn_impl == "auto":
        return "sdpa" if passed_over_attn_impls(device, dtype, attn_pdrop) else _preferred(device)
    if attn_impl not in BACKENDS:
        raise ValueError(f"attn_config.attn_impl: expected one of auto, {', '.join(BACKENDS)}, got {attn_impl!r}")
    if why := _why_not(attn_impl, device, dtype, attn_pdrop):
        raise ValueError(f"attn_config.attn_impl is {attn_impl}, but {why}: use auto or sdpa")
    return attn_impl


def passed_over_attn_impls(device: torch.device, dtype: torch.dtype | None, attn_pdrop: float) -> dict[str, str]:
    """The backend that `auto` prefers on this device but cannot use, mapped to the reason. Empty if `auto` can use the
    preferred backend."""
    impl = _preferred(device)
    why = _why_not(impl, device, dtype, attn_pdrop)
    return {impl: why} if why else {}


def _preferred(device: torch.device) -> str:
    return "flash" if device.type == "cuda" else "blocks"


def _why_not(impl: str, device: torch.device, dtype: torch.dtype | None, attn_pdrop: float) -> str | None:
    if impl == "blocks":
        return _why_not_blocks(device, dtype, attn_pdrop)
    if impl == "flash":
        return _why_not_flash(device, dtype)
    if impl == "flex":
        return (
            "FlexAttention does not support dropout, and attn_pdrop is not 0"
            if attn_pdrop
            else _why_not_flex(device.type)
        )
    return None


def _why_not_blocks(device: torch.device, dtype: torch.dtype | None, attn_pdrop: float) -> str | None:
    if device.type != "cpu":
        return f"blocks runs only on a CPU, and this run is on {device.type}"
    if attn_pdrop:
        return "blocks does not support dropout, and attn_pdrop is not 0"
    if dtype not in (None, torch.float32, torch.float64):
        return f"blocks supports only fp32 and fp64, but attention is computed in {str(dtype).removeprefix('torch.')}"
    return None


def _why_not_flash(device: torch.device, dtype: torch.dtype | None) -> str | None:
    if device.type != "cuda":
        return f"flash-attn runs only on a CUDA GPU, and this run is on {device.type}"
    if broken := _flash_import_error():
        return broken
    if torch.cuda.get_device_capability(device) < (8, 0):
        return (
            f"flash-attn requires compute capability 8.0 or higher, and {torch.cuda.get_device_name(device)} has a "
            "lower compute capability"
        )
    if dtype not in (None, torch.bfloat16, torch.float16):
        return (
            f"flash-attn supports only bf16 and fp16, but attention is computed in {str(dtype).removeprefix('torch.')}"
        )
    return None


@functools.cache
def _flash_import_error() -> str | None:
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed"
    try:
        importlib.import_module("flash_attn").flash_attn_varlen_func  # noqa: B018
    except Exception as error:  # a build for another version of torch raises ImportError, OSError or RuntimeError
        message = " ".join(str(error).split())
        return f"flash-attn is installed but cannot be imported ({type(error).__name__}: {message})"
    return None


@functools.cache
def _why_not_flex(device_type: str) -> str | None:
    """The reason why FlexAttention cannot be used; None if it can be used. On a CPU, only some versions of torch
    support its backward pass, so this function runs the backward pass instead of checking the version."""
    if device_type == "cuda":
        return None
    x = torch.zeros(1, 1, 1, 16, device=device_type, requires_grad=True)
    try:
        # Imported here, because it loads torch's compiler, which takes seconds.
        from torch.nn.attention.flex_attention import flex_attention

        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            flex_attention(x, x, x).sum().backward()  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:
        return f"FlexAttention in this version of torch has no backward pass on {device_type} ({error})"
    return None
