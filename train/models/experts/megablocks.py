"""Experts computed with MegaBlocks (Gale et al. 2022). Its kernels move the tokens, and its grouped GEMM computes the
products.

MegaBlocks' own dropless layer uses the same functions with mlp_impl 'grouped'. However, that layer includes a router,
keeps losses in module globals, and does not support frozen weights.
"""

import functools
import math
import os
from typing import Any

import torch
from torch import Tensor

from train.models.config import MEGABLOCKS_LIMIT
from train.models.experts.assignment import Assignment
from train.models.experts.grouped import grouped_glu

RoutedShape = tuple[int, int, int]
"""(tokens, experts per token, d_model). With expert parallelism, the number of experts per token is 1, because a rank
receives a copy of a token for each of its experts."""
Library = tuple[Any, Any]
"""The modules with MegaBlocks' kernels and with its grouped GEMM."""


@functools.cache
def _import() -> Library | str:
    """The installed library, or the reason why it cannot be used."""
    try:
        import megablocks.grouped_gemm_util as grouped_gemm  # pyright: ignore[reportMissingImports]
        from megablocks.backend import kernels  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "megablocks":
            return "MegaBlocks is not installed: run scripts/dev/build_megablocks.sh"
        return f"importing MegaBlocks failed: {_error_text(error)}"
    except Exception as error:  # without a driver, Triton or MegaBlocks raises RuntimeError
        return f"importing MegaBlocks failed: {_error_text(error)}"
    if not grouped_gemm.grouped_gemm_is_available():
        return f"MegaBlocks cannot use its grouped GEMM: {_why_not_importable('grouped_gemm')}"
    return kernels, grouped_gemm.backend


def _why_not_importable(name: str) -> str:
    try:
        __import__(name)
    except Exception as error:
        return _error_text(error)
    return f"{name} could not be imported when MegaBlocks was imported"


def _error_text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def why_not_megablocks(device: torch.device, dtype: torch.dtype | None, shape: RoutedShape | None) -> str | None:
    """The reason why MegaBlocks cannot be used, or None."""
    imported = _import()
    if isinstance(imported, str):
        return (
            imported
            if device.type == "cuda"
            else f"{imported} (MegaBlocks also requires a GPU; this device is {device.type})"
        )
    # Triton's interpreter runs the kernels without a GPU; the tests use it.
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"MegaBlocks requires a GPU, and this device is {device.type}"
    if device.type == "cuda" and dtype not in (None, torch.bfloat16):
        return f"MegaBlocks' grouped GEMM supports only bfloat16, not {dtype}"
    if shape is not None and (product := math.prod(shape)) >= MEGABLOCKS_LIMIT:
        T, K, D = shape
        return (
            f"MegaBlocks' kernels compute addresses in 32 bits: {T:,} tokens x {K} experts per token x d_model {D:,} "
            f"is {product:,}, which must be below 2**31 = {MEGABLOCKS_LIMIT:,} (grouped_mm has no such limit)"
        )
    return None


def megablocks_experts(
    x_TD: Tensor, weights_TK: Tensor, w1: Tensor, v1: Tensor, w2: Tensor, assignment: Assignment, recompute: bool
) -> Tensor:
    return grouped_glu(x_TD, weights_TK, w1, v1, w2, MegaBlocks(assignment), recompute)


class MegaBlocks:
    def __init__(self, assignment: Assignment, library: Library | None = None) -> None:
        """library: the library to use, or None for the installed one."""
        imported = library or _import()
        assert not isinstance(imported, str), imported
        self.kernels, self.backend = imported
        self.order_A, self.top_k = assignment.order_A, assignment.slot_TK.shape[1]
        # The kernels need 32-bit indices. The GEMM needs the counts on the CPU; copying them to the CPU is the only
        # device synchronization.
        self.indices_A, self.bin_ids_A = assignment.order_A.int(), assignment.expert_A.int()
        self.bins_E = assignment.counts_E.cumsum(0, dtype=torch.int32)
        self.batch_sizes_E = assignment.counts_E.cpu()
        self.idle = (self.batch_sizes_E == 0).nonzero().flatten().tolist()

    def gather(self, x_TD: Tensor) -> Tensor:
        return self.kernels.gather(x_TD, self.indices_A, self.bin_ids_A, None, self.bins_E, self.top_k)

    def combine(self, y_AD: Tensor, weights_TK: Tensor | None) -> Tensor:
        weights = None if weights_TK is None else weights_TK.flatten()
        return self.kernels.scatter(y_AD, self.indices_A, self.bin_ids_A, weights, self.bins_E, self.top_k)

    def rows_by_columns(self, x_AD: Tensor, w: Tensor) -> Tensor:
        return self.backend.gmm(x_AD, self._by_expert(w), self.batch_sizes_E, trans_b=True)

    def rows_by_rows(self, h_AF: Tensor, w: Tensor) -> Tensor:
        return self.backend.gmm(h_AF, self._by_expert(w), self.batch_sizes_E)

    def weight_gradient(self, h_AF: Tensor, x_AD: Tensor) -> Tensor:
        dw_EFD = self.backend.gmm(h_AF, x_AD, self.batch_sizes_E, trans_a=True)
        # Not every build of the grouped GEMM writes the gradient of an expert without tokens.
        for expert in self.idle:
            dw_EFD[expert].zero_()
        return dw_EFD.flatten(0, 1)

    def _by_expert(self, w: Tensor) -> Tensor:
        return w.unflatten(0, (len(self.batch_sizes_E), -1))
