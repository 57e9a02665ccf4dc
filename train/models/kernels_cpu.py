"""Calls what kernels.c, gemm.c and attention.c define: setuptools compiles them where the project is installed, if it
finds a C compiler."""

import ctypes
import functools
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float


switched_off: set[str] = set()
"""Of `gemm.c`, `attention.c` and `kernels.c`, those that are not used: for benches."""


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they were not compiled, cannot be loaded or are those of an older version."""
    spec = importlib.util.find_spec("train.models._kernels")
    if spec is None or spec.origin is None:
        return None
    try:
        # Its threads are those of torch, whose OpenMP is lent to what is loaded after it: two would hinder each other.
        for openmp in _loaded_openmp():
            ctypes.CDLL(openmp, mode=ctypes.RTLD_GLOBAL)
        return _declared(ctypes.CDLL(spec.origin))
    except (OSError, AttributeError):
        return None


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """Raises AttributeError where a function is not there."""
    loaded.glu.argtypes = [_LONG, *[_POINTER] * 3, _INT]
    loaded.glu_backward.argtypes = [_LONG, _LONG, *[_POINTER] * 7, _INT]
    loaded.clip_and_rotate.argtypes = [*[_LONG] * 4, *[_POINTER] * 3, _FLOAT, *[_POINTER] * 3, _INT]
    loaded.clip_and_rotate_backward.argtypes = [*[_LONG] * 4, *[_POINTER] * 6, _FLOAT, _POINTER, _INT]
    for function in (loaded.glu, loaded.glu_backward, loaded.clip_and_rotate, loaded.clip_and_rotate_backward):
        function.restype = None
    if loaded.has_gemm():
        loaded.gemm.argtypes = [*[_LONG] * 3, *[_POINTER, _LONG, _LONG] * 2, _POINTER, _LONG, _INT, _INT]
        loaded.attend.argtypes = [_LONG, _POINTER, _POINTER, *[_LONG] * 3, _FLOAT, *[_POINTER] * 4, _INT]
        loaded.attend_backward.argtypes = [_LONG, _POINTER, _POINTER, *[_LONG] * 3, _FLOAT, *[_POINTER] * 7, _INT]
    return loaded


def _loaded_openmp() -> list[str]:
    """The files of this process's OpenMP libraries, torch's first: of several, the first to be lent is used."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    files = {line.split(maxsplit=5)[-1] for line in lines if "omp" in line}
    found = (file for file in files if Path(file).name.startswith(("libgomp", "libiomp", "libomp")))
    return sorted(found, key=lambda file: "torch" not in file)


def is_plain(x: Tensor) -> bool:
    """Whether x has memory of this process that holds its fp32 numbers: DTensors and fake ones have none."""
    return type(x) in (Tensor, Parameter) and x.is_cpu and x.dtype is torch.float32 and not x.is_neg()


def can_fuse(*tensors: Tensor, kernel: str = "kernels.c") -> bool:
    if kernel in switched_off or library() is None:
        return False
    return all(is_plain(x) and x.is_contiguous() for x in tensors)


def fused_glu(h1_AF: Tensor, h2_AF: Tensor, act_AF: Tensor) -> None:
    """Writes act."""
    _loaded().glu(h1_AF.numel(), *_pointers(h1_AF, h2_AF, act_AF), torch.get_num_threads())


def fused_glu_backward(dact_AF: Tensor, h1_AF: Tensor, *others: Tensor) -> None:
    """As glu_triton.fused_glu_backward."""
    _loaded().glu_backward(*h1_AF.shape, *_pointers(dact_AF, h1_AF, *others), torch.get_num_threads())


def clip_and_rotate(
    qkv_PW: Tensor, cos_PC: Tensor, sin_PC: Tensor, clip: float | None, q_PHC: Tensor, k_PGC: Tensor, v_PGC: Tensor
) -> None:
    """Writes q, k and v."""
    (P, H, C), G = q_PHC.shape, k_PGC.shape[1]
    read, written = _pointers(qkv_PW, cos_PC, sin_PC), _pointers(q_PHC, k_PGC, v_PGC)
    _loaded().clip_and_rotate(P, H, G, C, *read, _bound(clip), *written, torch.get_num_threads())


def clip_and_rotate_backward(
    grads: Sequence[Tensor], qkv_PW: Tensor, cos_PC: Tensor, sin_PC: Tensor, clip: float | None, dqkv_PW: Tensor
) -> None:
    """grads: of q, k and v. Writes dqkv."""
    (P, H, C), G = grads[0].shape, grads[1].shape[1]
    read = _pointers(*grads, qkv_PW, cos_PC, sin_PC)
    _loaded().clip_and_rotate_backward(P, H, G, C, *read, _bound(clip), *_pointers(dqkv_PW), torch.get_num_threads())


@functools.cache
def has_gemm() -> bool:
    """Whether this processor can run what gemm.c and attention.c define."""
    return (loaded := library()) is not None and bool(loaded.has_gemm())


def gemm(a_MK: Tensor, b_KN: Tensor, out_MN: Tensor, add: bool) -> None:
    """Writes a b to out, or adds it. Each of a and b has one stride of 1, as has a row of out."""
    (M, K), N = a_MK.shape, b_KN.shape[1]
    assert K, "nothing would be written"
    assert all(x.dtype is torch.float32 for x in (a_MK, b_KN, out_MN))
    assert all(1 in x.stride() for x in (a_MK, b_KN))
    assert (b_KN.shape[0], out_MN.shape, out_MN.stride(1)) == (K, (M, N), 1)
    operands = (number for x in (a_MK, b_KN) for number in (x.data_ptr(), *x.stride()))
    _told(_loaded().gemm(M, N, K, *operands, out_MN.data_ptr(), out_MN.stride(0), add, torch.get_num_threads()))


def attend(
    blocks_B3: Tensor, begins_T: Tensor, q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor, scale: float, y_THC: Tensor
) -> None:
    """Writes y. A block's queries [start, end) meet the keys [first, end); a token's document begins at begins."""
    pointers = _pointers(q_THC, k_TGC, v_TGC, y_THC)
    _told(_loaded().attend(*_attention(blocks_B3, begins_T, q_THC, k_TGC, scale), *pointers, torch.get_num_threads()))


def attend_backward(
    blocks_B3: Tensor, begins_T: Tensor, q_THC: Tensor, k_TGC: Tensor, v_TGC: Tensor, scale: float, *others: Tensor
) -> None:
    """others: the gradient of y, then those of q, k and v, which are written."""
    call, pointers = _loaded().attend_backward, _pointers(q_THC, k_TGC, v_TGC, *others)
    _told(call(*_attention(blocks_B3, begins_T, q_THC, k_TGC, scale), *pointers, torch.get_num_threads()))


def _attention(blocks_B3: Tensor, begins_T: Tensor, q_THC: Tensor, k_TGC: Tensor, scale: float) -> tuple[Any, ...]:
    (T, H, C), G = q_THC.shape, k_TGC.shape[1]
    assert (len(k_TGC), len(begins_T), H % G) == (T, T, 0)
    assert all(x.dtype is torch.int64 and x.is_contiguous() for x in (blocks_B3, begins_T))
    return len(blocks_B3), blocks_B3.data_ptr(), begins_T.data_ptr(), H, G, C, scale


def _told(failed: int) -> None:
    if failed:
        raise MemoryError("there is no memory for what the C kernels copy: a few MB a thread")


def _bound(clip: float | None) -> float:
    return math.inf if clip is None else clip


def _loaded() -> ctypes.CDLL:
    loaded = library()
    assert loaded is not None
    return loaded


def _pointers(*tensors: Tensor) -> list[int]:
    assert all(tensor.is_contiguous() and tensor.dtype is torch.float32 for tensor in tensors)
    return [tensor.data_ptr() for tensor in tensors]
