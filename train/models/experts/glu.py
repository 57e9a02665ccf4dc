"""The elementwise operations between the experts' GEMMs: Triton kernels on a GPU, torch calls elsewhere.

Shapes: T tokens, K experts per token, A = T*K assignments (or those of one expert), D d_model, F ffn_hidden_size.
"""

import functools
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from train.models.device import is_simulated

_silu_backward: Any = torch.ops.aten.silu_backward
"""Maps the gradient of silu's output, and silu's input, to the gradient of the input."""


_SIMULATED = SimpleNamespace(
    fused_combine=lambda y_AD, slot_TK, weights_TK: y_AD.new_empty(slot_TK.shape[0], y_AD.shape[1]),
    fused_glu=lambda *tensors: None,
    fused_glu_backward=lambda *tensors: None,
)
"""Functions that replace the Triton kernels in a simulation, where tensors have no data. They compute nothing."""


@functools.cache
def _triton() -> Any:
    try:
        from train.models.experts import glu_triton
    except Exception:  # the import can raise any exception of the GPU driver
        return None
    return glu_triton


def _kernels(h_AF: Tensor) -> Any:
    """The module of the Triton kernels if they support this tensor, otherwise None."""
    if h_AF.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return None
    if is_simulated("cuda"):
        return _SIMULATED
    return _triton() if h_AF.is_cuda else None


def combine(y_AD: Tensor, slot_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """Sum the rows of y for each token: [T, D]. weights_TK: weights of the sum, or None. Autograd is not supported."""
    if (kernels := _kernels(y_AD)) is not None:
        return kernels.fused_combine(y_AD, slot_TK, weights_TK)
    y_TKD = y_AD[slot_TK]
    if weights_TK is None:
        return y_TKD.sum(1)
    out_TD = torch.empty_like(y_TKD[:, 0])
    torch.bmm(weights_TK.unsqueeze(1), y_TKD, out=out_TD.unsqueeze(1))
    return out_TD


def glu(h1_AF: Tensor, h2_AF: Tensor, out: Tensor | None = None) -> Tensor:
    act_AF = torch.empty_like(h1_AF) if out is None else out
    if (kernels := _kernels(h1_AF)) is not None:
        kernels.fused_glu(h1_AF, h2_AF, act_AF)
    else:
        torch.mul(F.silu(h1_AF), h2_AF, out=act_AF)
    return act_AF


def glu_backward(
    dact_AF: Tensor, h1_AF: Tensor, h2_AF: Tensor, weights_A: Tensor, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of both pre-activations, the weighted activation, and the gradient of the weights.

    dact is the gradient of the unweighted activation and is overwritten. If out is given, the second and third results
    are written to it.
    """
    dh2_AF, act_AF = out or (torch.empty_like(h1_AF), torch.empty_like(h1_AF))
    if (kernels := _kernels(h1_AF)) is not None:
        dweights_A = torch.empty_like(weights_A)
        kernels.fused_glu_backward(dact_AF, h1_AF, h2_AF, weights_A, dh2_AF, act_AF, dweights_A)
        return dact_AF, dh2_AF, act_AF, dweights_A
    weights_A1 = weights_A.unsqueeze(1)
    silu_AF = F.silu(h1_AF)
    torch.mul(silu_AF, h2_AF, out=act_AF)
    dweights_A = (act_AF * dact_AF).sum(1)
    dact_AF.mul_(weights_A1)
    torch.mul(silu_AF, dact_AF, out=dh2_AF)
    dh1_AF = _silu_backward(dact_AF.mul_(h2_AF), h1_AF)
    return dh1_AF, dh2_AF, act_AF.mul_(weights_A1), dweights_A
