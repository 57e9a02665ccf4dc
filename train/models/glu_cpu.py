"""Calls the kernels of glu.c, which setuptools compiles where the project is installed and there is a C compiler."""

import ctypes
import functools
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they were not compiled or cannot be loaded."""
    spec = importlib.util.find_spec("train.models._glu")
    if spec is None or spec.origin is None:
        return None
    try:
        # Its threads are those of torch, whose OpenMP is lent to what is loaded after it: two would hinder each other.
        for openmp in _loaded_openmp():
            ctypes.CDLL(openmp, mode=ctypes.RTLD_GLOBAL)
        loaded = ctypes.CDLL(spec.origin)
    except OSError:
        return None
    loaded.glu.argtypes = [_LONG, *[_POINTER] * 3, _INT]
    loaded.glu_backward.argtypes = [_LONG, _LONG, *[_POINTER] * 7, _INT]
    loaded.glu.restype = loaded.glu_backward.restype = None
    return loaded


def _loaded_openmp() -> list[str]:
    """The files of this process's OpenMP libraries, torch's first: of several, the first to be lent is used."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    files = {line.split(maxsplit=5)[-1] for line in lines if "omp" in line}
    found = (file for file in files if Path(file).name.startswith(("libgomp", "libiomp", "libomp")))
    return sorted(found, key=lambda file: "torch" not in file)


def can_fuse(h_AF: Tensor) -> bool:
    return h_AF.device.type == "cpu" and h_AF.dtype is torch.float32 and h_AF.is_contiguous() and library() is not None


def fused_glu(h1_AF: Tensor, h2_AF: Tensor, act_AF: Tensor) -> None:
    """Writes act."""
    _loaded().glu(h1_AF.numel(), *_pointers(h1_AF, h2_AF, act_AF), torch.get_num_threads())


def fused_glu_backward(dact_AF: Tensor, h1_AF: Tensor, *others: Tensor) -> None:
    """As glu_triton.fused_glu_backward."""
    _loaded().glu_backward(*h1_AF.shape, *_pointers(dact_AF, h1_AF, *others), torch.get_num_threads())


def _loaded() -> ctypes.CDLL:
    loaded = library()
    assert loaded is not None
    return loaded


def _pointers(*tensors: Tensor) -> list[int]:
    assert all(tensor.is_contiguous() and tensor.dtype is torch.float32 for tensor in tensors)
    return [tensor.data_ptr() for tensor in tensors]
