"""Experts by MegaBlocks (Gale et al. 2022): its kernels carry the tokens, its grouped GEMM computes.

What is used is what MegaBlocks' own dropless layer with mlp_impl 'grouped' runs on, without that layer's router and
module-global losses, and without its refusal of frozen weights.
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
"""(tokens, experts a token, d_model). With expert parallelism each token that a rank receives has one expert."""
Library = tuple[Any, Any]
"""MegaBlocks' kernels and its grouped GEMM."""


@functools.cache
def _import() -> Library | str:
    """What is installed, or why it cannot be had."""
    try:
        import megablocks.grouped_gemm_util as grouped_gemm  # pyright: ignore[reportMissingImports]
        from megablocks.backend import kernels  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "megablocks":
            return "MegaBlocks is not installed: run scripts/dev/build_megablocks.sh"
        return f"importing MegaBlocks failed: {_shown(error)}"
    except Exception as error:  # without a driver it is a RuntimeError, from Triton or from MegaBlocks itself
        return f"importing MegaBlocks failed: {_shown(error)}"
    if not grouped_gemm.grouped_gemm_is_available():
        return f"MegaBlocks lacks its grouped GEMM: {_why_not_importable('grouped_gemm')}"
    return kernels, grouped_gemm.backend


def _why_not_importable(name: str) -> str:
    try:
        __import__(name)
    except Exception as error:
        return _shown(error)
    return f"{name} was not there when MegaBlocks was imported"


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def why_not_megablocks(device: torch.device, dtype: torch.dtype | None, shape: RoutedShape | None) -> str | None:
    """What stands in the way, or None."""
    imported = _import()
    if isinstance(imported, str):
        return imported if device.type == "cuda" else f"{imported} (and it needs a GPU; this is {device.type})"
    # Under Triton's interpreter the kernels run without a GPU, which is how they are tested.
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"MegaBlocks needs a GPU, and this is {device.type}"
    if device.type == "cuda" and dtype not in (None, torch.bfloat16):
        return f"its grouped GEMM computes in bfloat16, not in {dtype}"
    if shape is not None and (product := math.prod(shape)) >= MEGABLOCKS_LIMIT:
        T, K, D = shape
        return (
            f"its kernels compute addresses in 32 bits, and {T:,} tokens x {K} experts a token x d_model {D:,} is "
            f"{product:,}, which must be below 2**31 = {MEGABLOCKS_LIMIT:,} (grouped_mm has no such limit)"
        )
    return None


def megablocks_experts(
    x_TD: Tensor, weights_TK: Tensor, w1: Tensor, v1: Tensor, w2: Tensor, assignment: Assignment, recompute: bool
) -> Tensor:
    return grouped_glu(x_TD, weights_TK, w1, v1, w2, MegaBlocks(assignment), recompute)


class MegaBlocks:
    def __init__(self, assignment: Assignment, library: Library | None = None) -> None:
        """library: None takes what is installed."""
        imported = library or _import()
        assert not isinstance(imported, str), imported
        self.kernels, self.backend = imported
        self.order_A, self.top_k = assignment.order_A, assignment.slot_TK.shape[1]
        # Its kernels take 32-bit indices; the GEMM takes the counts on the CPU, which is the one wait for the device.
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
        # Not every build of the grouped GEMM writes where there is nothing to multiply.
        for expert in self.idle:
            dw_EFD[expert].zero_()
        return dw_EFD.flatten(0, 1)

    def _by_expert(self, w: Tensor) -> Tensor:
        return w.unflatten(0, (len(self.batch_sizes_E), -1))
