"""What stands between the GEMMs of experts: one Triton kernel each on a GPU, else torch calls.

Shapes: T tokens, K experts a token, A = T*K assignments (or those of one expert), D d_model, F ffn_hidden_size.
"""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_silu_backward: Any = torch.ops.aten.silu_backward
"""(gradient, input) -> gradient."""


@functools.cache
def _has_triton() -> bool:
    try:
        import train.models.experts.glu_triton  # noqa: F401
    except Exception:  # Triton raises whatever its driver does
        return False
    return True


def _on_gpu(h_AF: Tensor) -> bool:
    return h_AF.is_cuda and h_AF.dtype in (torch.bfloat16, torch.float16, torch.float32) and _has_triton()


def combine(y_AD: Tensor, slot_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """[T, D]: the sum of each token's rows of y, weighted where there are weights. Without gradients."""
    if _on_gpu(y_AD):
        from train.models.experts.glu_triton import fused_combine

        return fused_combine(y_AD, slot_TK, weights_TK)
    y_TKD = y_AD[slot_TK]
    if weights_TK is None:
        return y_TKD.sum(1)
    out_TD = torch.empty_like(y_TKD[:, 0])
    torch.bmm(weights_TK.unsqueeze(1), y_TKD, out=out_TD.unsqueeze(1))
    return out_TD


def glu(h1_AF: Tensor, h2_AF: Tensor, out: Tensor | None = None) -> Tensor:
    act_AF = torch.empty_like(h1_AF) if out is None else out
    if _on_gpu(h1_AF):
        from train.models.experts.glu_triton import fused_glu

        fused_glu(h1_AF, h2_AF, act_AF)
    else:
        torch.mul(F.silu(h1_AF), h2_AF, out=act_AF)
    return act_AF


def glu_backward(
    dact_AF: Tensor, h1_AF: Tensor, h2_AF: Tensor, weights_A: Tensor, out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of both pre-activations, the weighted activation, and the gradient of the weights.

    dact is the gradient of an activation that has weight 1; it is overwritten. The second and the third result are
    written into out where it is given.
    """
    dh2_AF, act_AF = out or (torch.empty_like(h1_AF), torch.empty_like(h1_AF))
    if _on_gpu(h1_AF):
        from train.models.experts.glu_triton import fused_glu_backward

        dweights_A = torch.empty_like(weights_A)
        fused_glu_backward(dact_AF, h1_AF, h2_AF, weights_A, dh2_AF, act_AF, dweights_A)
        return dact_AF, dh2_AF, act_AF, dweights_A
    weights_A1 = weights_A.unsqueeze(1)
    silu_AF = F.silu(h1_AF)
    torch.mul(silu_AF, h2_AF, out=act_AF)
    dweights_A = (act_AF * dact_AF).sum(1)
    dact_AF.mul_(weights_A1)
    torch.mul(silu_AF, dact_AF, out=dh2_AF)
    dh1_AF = _silu_backward(dact_AF.mul_(h2_AF), h1_AF)
    return dh1_AF, dh2_AF, act_AF.mul_(weights_A1), dweights_A
