"""Experts with frozen weights and low-rank adapters (LoRA, Hu et al. 2021), on the same sorted tokens.

Each of w1, v1 and w2, flat [E*F, D], may have an adapter: to expert e's is added scale * B_e A, with A [R, D] shared by
the experts, or [E*R, D] of one A an expert, and B [E*F, R]. The sum is never made: what meets a token are A and B.
Shapes: T tokens, K experts a token, A = T*K assignments sorted by expert, D d_model, E experts, F ffn_hidden_size,
R rank.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.models.experts.glu import glu, glu_backward
from train.models.experts.grouped import Grouped


class Pair(NamedTuple):
    A: Tensor
    B: Tensor


def _as_it_is(weight: Tensor) -> Tensor:
    return weight


class Options(NamedTuple):
    scale: float
    per_expert: bool
    dropout: float
    """Of what enters w2's adapter; what enters the others' comes with it."""
    recompute: bool
    open_weight: Callable[[Tensor], Tensor] = _as_it_is
    """What makes [E*F, D] of w1, v1 and w2 as they are given, each time one is needed."""


def lora_glu(
    x_TD: Tensor,
    dropped_TD: Tensor,
    weights_TK: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    pairs: tuple[Pair | None, Pair | None, Pair | None],
    grouped: Grouped,
    options: Options,
) -> Tensor:
    """[T, D] of frozen w1, v1, w2, whose gradients are not computed, and their pairs.

    dropped is what the adapters of w1 and v1 see of x, without dropout x itself.
    """
    flat = [tensor for pair in pairs for tensor in (pair or (None, None))]
    if not x_TD.shape[0]:
        # Kernels cannot be launched for nothing, but zero gradients have to flow all the same.
        return x_TD * weights_TK.sum() + 0 * (dropped_TD.sum() + sum(t.sum() for t in flat if t is not None))
    # Drawn where it costs no wait for the device, and so that a forward computed again draws it again.
    seed = int(torch.randint(2**62, ())) if options.dropout else 0
    return _LoraGLU.apply(x_TD, dropped_TD, weights_TK, *weights, *flat, grouped, options, seed)  # pyright: ignore[reportReturnType]


class _LoraGLU(torch.autograd.Function):
    """sum over k of weight * (w2_e + s B2_e A2)^T (silu(h1) * h2), where h1 = (w1_e + s B1_e A1) x, and h2 likewise.

    Saved for backward: x and the two pre-activations; with recompute x alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        dropped_TD: Tensor,
        weights_TK: Tensor,
        w1: Tensor,
        v1: Tensor,
        w2: Tensor,
        A1: Tensor | None,
        B1: Tensor | None,
        A2: Tensor | None,
        B2: Tensor | None,
        A3: Tensor | None,
        B3: Tensor | None,
        grouped: Grouped,
        options: Options,
        seed: int,
    ) -> Tensor:
        low = _LowRank(grouped, options)
        x_AD = grouped.gather(x_TD)
        h1_AF = low.preactivation(x_AD, dropped_TD, w1, A1, B1)
        h2_AF = low.preactivation(x_AD, dropped_TD, v1, A2, B2)
        kept = () if options.recompute else (h1_AF, h2_AF)
        ctx.save_for_backward(x_TD, dropped_TD, weights_TK, w1, v1, w2, A1, B1, A2, B2, A3, B3, *kept)
        ctx.low, ctx.seed = low, seed
        act_AF = glu(h1_AF, h2_AF)
        y_AD = grouped.rows_by_rows(act_AF, options.open_weight(w2))
        if A3 is None or B3 is None:
            return grouped.combine(y_AD, weights_TK)
        low_AR = low.scaled(grouped.rows_by_rows(low.dropped(act_AF, seed), B3))
        if options.per_expert:
            return grouped.combine(y_AD.add_(grouped.rows_by_rows(low_AR, A3)), weights_TK)
        return grouped.combine(y_AD, weights_TK).addmm_(grouped.combine(low_AR, weights_TK), A3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x_TD, dropped_TD, weights_TK, w1, v1, w2, A1, B1, A2, B2, A3, B3, *kept = ctx.saved_tensors
        low: _LowRank = ctx.low
        grouped, options = low.grouped, low.options
        dy_TD = grad_outputs[0].contiguous()
        if kept:
            h1_AF, h2_AF = kept
        else:
            x_AD = grouped.gather(x_TD)
            h1_AF = low.preactivation(x_AD, dropped_TD, w1, A1, B1)
            h2_AF = low.preactivation(x_AD, dropped_TD, v1, A2, B2)
            del x_AD
        dy_AD = grouped.gather(dy_TD)
        dact_AF = grouped.rows_by_columns(dy_AD, options.open_weight(w2))
        dlow_AR = low.down(dy_TD, A3, dy_AD) if A3 is not None else None
        if dlow_AR is not None:
            dact_AF.add_(low.dropped(grouped.rows_by_columns(dlow_AR, B3), ctx.seed))
        weights_A = weights_TK.flatten()[grouped.order_A]
        dh1_AF, dh2_AF, act_AF, dweights_A = glu_backward(dact_AF, h1_AF, h2_AF, weights_A)
        dA3 = dB3 = None
        if dlow_AR is not None:
            act_AF = low.dropped(act_AF, ctx.seed)
            dB3 = grouped.weight_gradient(act_AF, dlow_AR)
            dA3 = low.down_gradient(low.scaled(grouped.rows_by_rows(act_AF, B3)), dy_TD, dy_AD)
        del dact_AF, act_AF, dy_AD, h1_AF, h2_AF, kept
        needs_x, needs_dropped, needs_weights = ctx.needs_input_grad[:3]
        ddropped_TD = torch.zeros_like(dropped_TD) if needs_dropped else None
        dA1, dB1 = low.gradients(dh1_AF, dropped_TD, A1, B1, ddropped_TD)
        dA2, dB2 = low.gradients(dh2_AF, dropped_TD, A2, B2, ddropped_TD)
        dx_TD = dweights_TK = None
        if needs_x:
            dx_TD = grouped.combine(grouped.rows_by_rows(dh1_AF, options.open_weight(w1)), None)
            dx_TD += grouped.combine(grouped.rows_by_rows(dh2_AF, options.open_weight(v1)), None)
        if needs_weights:
            dweights_TK = torch.empty_like(dweights_A).index_copy_(0, grouped.order_A, dweights_A)
            dweights_TK = dweights_TK.view_as(weights_TK).to(weights_TK.dtype)
        pairs = (dA1, dB1, dA2, dB2, dA3, dB3)
        return dx_TD, ddropped_TD, dweights_TK, None, None, None, *pairs, None, None, None


class _LowRank:
    """The adapters' products, for an A that the experts share and for one A an expert."""

    def __init__(self, grouped: Grouped, options: Options) -> None:
        self.grouped, self.options = grouped, options

    def scaled(self, low_AR: Tensor) -> Tensor:
        return low_AR.mul_(self.options.scale)

    def dropped(self, act_AF: Tensor, seed: int) -> Tensor:
        """The same places are dropped for the same seed, so that no mask is kept."""
        if not self.options.dropout:
            return act_AF
        generator = torch.Generator(act_AF.device).manual_seed(seed)
        kept = 1 - self.options.dropout
        return act_AF * torch.empty_like(act_AF).bernoulli_(kept, generator=generator).div_(kept)

    def down(self, x_TD: Tensor, A: Tensor, x_AD: Tensor | None = None) -> Tensor:
        """[A, R]: scale * A x. A shared A meets each token once."""
        if not self.options.per_expert:
            return self.grouped.gather(self.scaled(torch.mm(x_TD, A.t())))
        return self.scaled(self.grouped.rows_by_columns(self.grouped.gather(x_TD) if x_AD is None else x_AD, A))

    def down_gradient(self, dlow_AR: Tensor, x_TD: Tensor, x_AD: Tensor | None = None) -> Tensor:
        """Of A, where dlow is the gradient of A x (or the other way round)."""
        if not self.options.per_expert:
            return torch.mm(self.grouped.combine(dlow_AR, None).t(), x_TD)
        return self.grouped.weight_gradient(dlow_AR, self.grouped.gather(x_TD) if x_AD is None else x_AD)

    def preactivation(self, x_AD: Tensor, dropped_TD: Tensor, w: Tensor, A: Tensor | None, B: Tensor | None) -> Tensor:
        h_AF = self.grouped.rows_by_columns(x_AD, self.options.open_weight(w))
        return h_AF if A is None or B is None else h_AF.add_(self.grouped.rows_by_columns(self.down(dropped_TD, A), B))

    def gradients(
        self, dh_AF: Tensor, x_TD: Tensor, A: Tensor | None, B: Tensor | None, dx_TD: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Of A and B; x's is added to dx."""
        if A is None or B is None:
            return None, None
        dB = self.grouped.weight_gradient(dh_AF, self.down(x_TD, A))
        dlow_AR = self.scaled(self.grouped.rows_by_rows(dh_AF, B))
        if self.options.per_expert:
            if dx_TD is not None:
                dx_TD += self.grouped.combine(self.grouped.rows_by_rows(dlow_AR, A), None)
            return self.grouped.weight_gradient(dlow_AR, self.grouped.gather(x_TD)), dB
        dlow_TR = self.grouped.combine(dlow_AR, None)
        if dx_TD is not None:
            dx_TD.addmm_(dlow_TR, A)
        return torch.mm(dlow_TR.t(), x_TD), dB
