"""The experts: every token goes through the experts chosen for it, and no token is dropped.

Shapes: T tokens, K experts a token, A = T*K assignments sorted by expert, D d_model, E experts, F ffn_hidden_size.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.config import FFNConfig


class Assignment(NamedTuple):
    """Which token goes where, sorted by expert (stable, so that the result does not depend on chance)."""

    token_A: Tensor
    """The token of each sorted assignment."""
    slot_TK: Tensor
    """Where the k-th choice of a token stands among the sorted assignments."""
    counts_E: Tensor


def assign(experts_TK: Tensor, n_experts: int) -> Assignment:
    T, K = experts_TK.shape
    order_A = experts_TK.flatten().argsort(stable=True)
    slot_A = torch.empty_like(order_A)
    slot_A[order_A] = torch.arange(T * K, device=order_A.device)
    counts_E = torch.bincount(experts_TK.flatten(), minlength=n_experts)
    return Assignment(order_A // K, slot_A.view(T, K), counts_E)


class _SortedGLU(torch.autograd.Function):
    """sum over k of weight * w2_e^T (silu(w1_e x) * (v1_e x)), one GEMM per expert and matrix on views of the weights.

    Saved for backward: x and the two pre-activations; the activation, the experts' outputs and the gathered x are not.
    A token's weight gets its gradient from the activation's, so the experts' outputs are not needed for it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weights_TK: Tensor,
        w1: Tensor,
        v1: Tensor,
        w2: Tensor,
        token_A: Tensor,
        slot_TK: Tensor,
        splits: list[int],
    ) -> Tensor:
        width = w1.shape[0] // len(splits)
        h1_AF = x_TD.new_empty(token_A.shape[0], width)
        h2_AF = torch.empty_like(h1_AF)
        y_AD = x_TD.new_empty(token_A.shape[0], x_TD.shape[1])
        for rows, flat in _segments(splits, width):
            x = x_TD[token_A[rows]]
            h1 = torch.mm(x, w1[flat].t(), out=h1_AF[rows])
            h2 = torch.mm(x, v1[flat].t(), out=h2_AF[rows])
            torch.mm(F.silu(h1).mul_(h2), w2[flat], out=y_AD[rows])
        ctx.save_for_backward(x_TD, weights_TK, w1, v1, w2, token_A, slot_TK, h1_AF, h2_AF)
        ctx.splits = splits
        return torch.bmm(weights_TK.unsqueeze(1), y_AD[slot_TK]).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weights_TK, w1, v1, w2, token_A, slot_TK, h1_AF, h2_AF = ctx.saved_tensors
        (dout_TD,) = grad_outputs
        need_x, _, need_w1, need_v1, need_w2 = ctx.needs_input_grad[:5]
        width = w1.shape[0] // len(ctx.splits)
        weights_A = torch.empty_like(weights_TK.flatten()).index_copy_(0, slot_TK.flatten(), weights_TK.flatten())
        dweights_A = torch.empty_like(weights_A)
        dx_AD = x_TD.new_empty(token_A.shape[0], x_TD.shape[1]) if need_x else None
        dw1, dv1, dw2 = (
            torch.empty_like(w) if need else None for w, need in ((w1, need_w1), (v1, need_v1), (w2, need_w2))
        )
        for rows, flat in _segments(ctx.splits, width):
            h1, h2, token = h1_AF[rows], h2_AF[rows], token_A[rows]
            weight, dout = weights_A[rows].unsqueeze(1), dout_TD[token]
            gate = torch.sigmoid(h1)
            silu = h1 * gate
            act = silu * h2
            dact = dout @ w2[flat].t()
            torch.sum(dact * act, dim=1, out=dweights_A[rows])
            dact.mul_(weight)
            if dw2 is not None:
                torch.mm(act.mul_(weight).t(), dout, out=dw2[flat])
            dh2 = dact * silu
            # d silu(h)/dh = sigmoid(h) + silu(h) (1 - sigmoid(h))
            dh1 = dact.mul_(h2).mul_(gate.add_(silu.mul_(1 - gate)))
            if dx_AD is not None:
                torch.mm(dh1, w1[flat], out=dx_AD[rows]).addmm_(dh2, v1[flat])
            if dw1 is not None or dv1 is not None:
                x = x_TD[token]
                if dw1 is not None:
                    torch.mm(dh1.t(), x, out=dw1[flat])
                if dv1 is not None:
                    torch.mm(dh2.t(), x, out=dv1[flat])
        dx_TD = dx_AD[slot_TK].sum(1) if dx_AD is not None else None
        return dx_TD, dweights_A[slot_TK], dw1, dv1, dw2, None, None, None


def _segments(splits: list[int], width: int) -> list[tuple[slice, slice]]:
    """For each expert its slice of the sorted assignments and its slice of the flat weights."""
    segments, start = [], 0
    for expert, count in enumerate(splits):
        segments.append((slice(start, start + count), slice(expert * width, (expert + 1) * width)))
        start += count
    return segments


class ExpertsMLP(nn.Module):
    """The weights of all experts, flat as in MegaBlocks and Hugging Face's DBRX: expert e owns rows [e*F, (e+1)*F)."""

    def __init__(self, d_model: int, config: FFNConfig) -> None:
        super().__init__()
        shape = (config.moe_num_experts * config.ffn_hidden_size, d_model)
        self.w1 = nn.Parameter(torch.empty(shape))
        self.v1 = nn.Parameter(torch.empty(shape))
        self.w2 = nn.Parameter(torch.empty(shape))

    def forward(self, x_TD: Tensor, weights_TK: Tensor, assignment: Assignment) -> Tensor:
        device = x_TD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x_TD.dtype
        tensors = (tensor.to(dtype) for tensor in (x_TD, weights_TK, self.w1, self.v1, self.w2))
        # The one wait for the device: the experts' shares decide the sizes of the GEMMs.
        splits = assignment.counts_E.tolist()
        return _SortedGLU.apply(*tensors, assignment.token_A, assignment.slot_TK, splits)  # pyright: ignore[reportReturnType]


class Experts(nn.Module):
    """Only a name on the way to the weights: `ffn.experts.mlp.w1` is where checkpoints of DBRX have them."""

    def __init__(self, d_model: int, config: FFNConfig) -> None:
        super().__init__()
        self.mlp = ExpertsMLP(d_model, config)

    def forward(self, x_TD: Tensor, weights_TK: Tensor, assignment: Assignment) -> Tensor:
        return self.mlp(x_TD, weights_TK, assignment)
