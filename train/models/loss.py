"""The head and its cross-entropy, computed in chunks of tokens, so that the full [tokens, vocab] logits are never in
memory.

Shapes: B rows, S row length, P = B*S positions, T tokens that are not padding, N trained tokens, C tokens of a chunk,
D d_model, V vocab_size.
"""

from typing import Any

import torch
from torch import Tensor

from data.mds.row import IGNORED
from train.models.device import device_type

_CHUNK_NUMEL = {"cpu": 1 << 22}
"""Number of logits per chunk. On a CPU, a chunk fits in the CPU's caches. On other devices, a chunk is large enough to
keep the whole device busy."""


def head_losses(x_TD: Tensor, weight_VD: Tensor, labels_BS: Tensor, place_T: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy of x W^T against the labels, and whether the label has the highest logit. place_T: the
    position of each token of x_TD in the flattened [B*S] rows.

    Returns losses [B, S] in at least fp32, 0 where the label is IGNORED, and correct [B, S], False where the label is
    IGNORED. The head is computed only at positions with a label.
    """
    device = x_TD.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x_TD, weight_VD = x_TD.to(dtype), weight_VD.to(dtype)
    token_N = (labels_BS.flatten()[place_T] != IGNORED).nonzero().squeeze(1)
    # The results are not views of longer tensors, because FSDP2 puts hooks on outputs, and a view can lose its hook.
    return _ChunkedCrossEntropy.apply(  # pyright: ignore[reportReturnType]
        x_TD, weight_VD, labels_BS, token_N, place_T[token_N]
    )


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes the gradient of the summed loss in forward, while the logits of a chunk are in memory.

    The gradient of x is linear in the factor of each token's loss, so backward only scales it. The gradient of the
    weight is a sum over tokens, and can be scaled only if all losses have the same factor. This is the case if the
    incoming gradient is a single expanded scalar. Otherwise, backward recomputes the logits and the sum.
    """

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weight_VD: Tensor, labels_BS: Tensor, token_N: Tensor, place_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        need_x, need_weight = ctx.needs_input_grad[:2]
        losses_BS = x_TD.new_zeros(labels_BS.shape, dtype=torch.promote_types(x_TD.dtype, torch.float32))
        correct_BS = torch.zeros(labels_BS.shape, dtype=torch.bool, device=x_TD.device)
        labels_P, losses_P, correct_P = labels_BS.flatten(), losses_BS.view(-1), correct_BS.view(-1)
        dx_TD = torch.zeros_like(x_TD) if need_x else None
        dweight_VD = torch.zeros_like(weight_VD, dtype=losses_BS.dtype) if need_weight else None
        for token_C, place_C in _chunks(token_N, place_N, weight_VD.shape[0]):
            x_CD, labels_C = x_TD[token_C], labels_P[place_C]
            losses_C, correct_C, probs_CV = _cross_entropy(x_CD, weight_VD, labels_C)
            losses_P[place_C], correct_P[place_C] = losses_C, correct_C
            if need_x or need_weight:
                dlogits_CV = _minus_one_hot(probs_CV, labels_C).to(x_TD.dtype)
                if dx_TD is not None:
                    dx_TD[token_C] = torch.mm(dlogits_CV, weight_VD)
                if dweight_VD is not None:
                    _add_outer(dweight_VD, dlogits_CV, x_CD)
        ctx.save_for_backward(x_TD, weight_VD, labels_P, token_N, place_N, dx_TD, dweight_VD)
        ctx.mark_non_differentiable(correct_BS)
        return losses_BS, correct_BS

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TD, weight_VD, labels_P, token_N, place_N, dx_TD, dweight_VD = ctx.saved_tensors
        factor_BS = grad_outputs[0]
        is_one = factor_BS.numel() > 0 and not any(factor_BS.stride())
        factor_P = factor_BS[0, :1].expand(factor_BS.numel()) if is_one else factor_BS.flatten()
        if dx_TD is not None:
            factor_T = factor_P.new_zeros(x_TD.shape[0]).index_copy(0, token_N, factor_P[place_N])
            dx_TD = dx_TD * factor_T.to(dx_TD.dtype).unsqueeze(1)
        if dweight_VD is not None:
            if is_one:
                dweight_VD = dweight_VD * factor_P[0]
            else:
                dweight_VD = torch.zeros_like(dweight_VD)
                for token_C, place_C in _chunks(token_N, place_N, weight_VD.shape[0]):
                    x_CD, labels_C = x_TD[token_C], labels_P[place_C]
                    probs_CV = _cross_entropy(x_CD, weight_VD, labels_C)[2]
                    dlogits_CV = _minus_one_hot(probs_CV, labels_C).mul_(factor_P[place_C].unsqueeze(1))
                    _add_outer(dweight_VD, dlogits_CV.to(x_TD.dtype), x_CD)
            dweight_VD = dweight_VD.to(weight_VD.dtype)
        return dx_TD, dweight_VD, None, None, None


def _chunks(token_N: Tensor, place_N: Tensor, vocab_size: int) -> list[tuple[Tensor, Tensor]]:
    numel = _CHUNK_NUMEL.get(device_type(token_N), 1 << 26)
    size = max(128, numel // vocab_size // 128 * 128)
    return list(zip(token_N.split(size), place_N.split(size), strict=True)) if token_N.numel() else []


def _cross_entropy(x_CD: Tensor, weight_VD: Tensor, labels_C: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return losses, whether the label has the highest logit, and probabilities, which overwrite the logits."""
    logits_CV = torch.mm(x_CD, weight_VD.t())
    logits_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    highest_C, choice_C = logits_CV.max(dim=1)
    logits_CV.sub_(highest_C.unsqueeze(1))
    of_label_C = logits_CV.gather(1, labels_C.unsqueeze(1)).squeeze(1)
    sums_C = logits_CV.exp_().sum(dim=1)
    return sums_C.log() - of_label_C, choice_C == labels_C, logits_CV.div_(sums_C.unsqueeze(1))


def _minus_one_hot(probs_CV: Tensor, labels_C: Tensor) -> Tensor:
    """Convert the probabilities to the gradient of the loss with respect to the logits, in place."""
    return probs_CV.scatter_add_(1, labels_C.unsqueeze(1), probs_CV.new_full((labels_C.shape[0], 1), -1.0))


def _add_outer(total_VD: Tensor, dlogits_CV: Tensor, x_CD: Tensor) -> None:
    if dlogits_CV.dtype == total_VD.dtype:
        total_VD.addmm_(dlogits_CV.t(), x_CD)
    else:
        # bf16 products are summed in fp32. In bf16, the contribution of a chunk could be lost to rounding.
        total_VD.add_(torch.mm(dlogits_CV.t(), x_CD))
