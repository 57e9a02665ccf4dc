"""Experts with frozen weights and low-rank adapters (LoRA, Hu et al. 2021), both applied to the same sorted tokens.

Each of w1, v1 and w2, stacked [E*F, D], may have an adapter that adds scale * B_e A to the weight of expert e. A is [R,
D] if the experts share it, or [E*R, D] with one A per expert; B is [E*F, R]. The sum is never materialized: A and B are
applied to the tokens.
Shapes: T tokens, K experts per token, A = T*K assignments sorted by expert, D d_model, E experts, F ffn_hidden_size,
R rank.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from train.models.experts.glu_function import experts_glu
from train.models.experts.grouped import Grouped


class Pair(NamedTuple):
    A: Tensor
    B: Tensor


def _unchanged(weight: Tensor) -> Tensor:
    return weight


class Options(NamedTuple):
    scale: float
    per_expert: bool
    dropout: float
    """Dropout on the input of w2's adapter. The input of the other adapters already has dropout applied."""
    recompute: bool
    open_weight: Callable[[Tensor], Tensor] = _unchanged
    """Converts a stored w1, v1 or w2, which may be packed, to [E*F, D]. Called each time a weight is needed."""


def lora_glu(
    x_TD: Tensor,
    dropped_TD: Tensor,
    weights_TK: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    pairs: tuple[Pair | None, Pair | None, Pair | None],
    grouped: Grouped,
    options: Options,
) -> Tensor:
    """Return [T, D], computed from the frozen w1, v1 and w2, which get no gradients, and from their adapters.

    dropped: the input of the adapters of w1 and v1, which is x with dropout, or x itself if there is no dropout.
    """
    adapters = [tensor for pair in pairs for tensor in (pair or (None, None))]
    # The seed is drawn on the CPU, so that no device synchronization is needed, and so that a recomputed forward draws
    # the same seed.
    seed = int(torch.randint(2**62, ())) if options.dropout and x_TD.shape[0] else 0
    products_of = functools.partial(_AdaptedProducts, grouped, options, seed)
    return experts_glu(products_of, options.recompute, weights_TK, x_TD, dropped_TD, *weights, *adapters)


class _AdaptedProducts:
    """Implements both LayerProducts and Products, with w_e + s B_e A_e in place of w_e. All assignments form a single
    part.

    The equations of glu_function.py become as follows. The left column contains the equations of w1 and v1, written for
    w1; the right column contains the equations of w2:

        h1 = x w1^T + s (x A^T) B^T         y = sum of p (act w2 + s (act B) A)
        dx = sum of dh1 w1 + s (dh1 B) A    dact = dy w2^T + s (dy A^T) B^T
        dB = dh1^T s (x A^T)                dB = (p act)^T s (dy A^T)
        dA = s (dh1 B)^T x                  dA = s (p act B)^T dy

    With dropout, the inputs of the adapters are x and act after dropout. The same dropout is applied to the adapters'
    contributions to dx and dact. x after dropout is a separate input of the autograd Function, with its own gradient.
    """

    def __init__(
        self, grouped: Grouped, options: Options, seed: int, tensors: Sequence[Any], needs: Sequence[bool]
    ) -> None:
        self.grouped, self.options, self.seed = grouped, options, seed
        self.order_A, self.splits = grouped.order_A, [len(grouped.order_A)]
        self.low = _LowRank(grouped, options)
        self.x_TD, self.dropped_TD, self.w1, self.v1, self.w2, *adapters = tensors
        self.A1, self.B1, self.A2, self.B2, self.A3, self.B3 = adapters
        self.needs_x, self.needs_dropped = needs[:2]
        # Typed as Any rather than Tensor or None, because the order in which Products' methods are called ensures that
        # these attributes are set before they are read.
        self.y_TD: Any = None
        self.dy_TD: Any = None
        self.dy_AD: Any = None
        self.dlow_AR: Any = None
        self.dx_TD: Tensor | None = None
        self.ddropped_TD: Tensor | None = None
        self.dpairs: list[tuple[Tensor | None, Tensor | None]] = [(None, None)] * 3

    def parts(self, keep: bool) -> Iterable["_AdaptedProducts"]:
        return (self,)

    def empty_like(self, h_AF: Tensor) -> Tensor:
        return torch.empty_like(h_AF)

    def preactivations(self) -> tuple[Tensor, Tensor]:
        x_AD = self.grouped.gather(self.x_TD)
        h1_AF = self.low.preactivation(x_AD, self.dropped_TD, self.w1, self.A1, self.B1)
        return h1_AF, self.low.preactivation(x_AD, self.dropped_TD, self.v1, self.A2, self.B2)

    def add_output(self, act_AF: Tensor, weights_TK: Tensor) -> None:
        grouped, low = self.grouped, self.low
        y_AD = grouped.rows_by_rows(act_AF, self.options.open_weight(self.w2))
        if self.A3 is None or self.B3 is None:
            self.y_TD = grouped.combine(y_AD, weights_TK)
            return
        low_AR = low.scaled(grouped.rows_by_rows(low.dropped(act_AF, self.seed), self.B3))
        if self.options.per_expert:
            self.y_TD = grouped.combine(y_AD.add_(grouped.rows_by_rows(low_AR, self.A3)), weights_TK)
        else:
            self.y_TD = grouped.combine(y_AD, weights_TK).addmm_(grouped.combine(low_AR, weights_TK), self.A3)

    def output(self) -> Tensor:
        return self.y_TD

    def activation_gradient(self, dy_TD: Tensor) -> Tensor:
        self.dy_TD, self.dy_AD = dy_TD, self.grouped.gather(dy_TD)
        dact_AF = self.grouped.rows_by_columns(self.dy_AD, self.options.open_weight(self.w2))
        if self.A3 is not None:
            self.dlow_AR = self.low.down(dy_TD, self.A3, self.dy_AD)
            dact_AF.add_(self.low.dropped(self.grouped.rows_by_columns(self.dlow_AR, self.B3), self.seed))
        return dact_AF

    def add_output_weight_gradient(self, act_AF: Tensor) -> None:
        if self.dlow_AR is not None:
            act_AF = self.low.dropped(act_AF, self.seed)
            dB = self.grouped.weight_gradient(act_AF, self.dlow_AR)
            low_AR = self.low.scaled(self.grouped.rows_by_rows(act_AF, self.B3))
            self.dpairs[2] = self.low.down_gradient(low_AR, self.dy_TD, self.dy_AD), dB
        self.dy_AD = self.dlow_AR = None

    def add_input_gradients(self, dh1_AF: Tensor, dh2_AF: Tensor) -> None:
        if self.needs_dropped:
            self.ddropped_TD = torch.zeros_like(self.dropped_TD)
        self.dpairs[0] = self.low.gradients(dh1_AF, self.dropped_TD, self.A1, self.B1, self.ddropped_TD)
        self.dpairs[1] = self.low.gradients(dh2_AF, self.dropped_TD, self.A2, self.B2, self.ddropped_TD)
        if self.needs_x:
            grouped, open_weight = self.grouped, self.options.open_weight
            self.dx_TD = grouped.combine(grouped.rows_by_rows(dh1_AF, open_weight(self.w1)), None)
            self.dx_TD += grouped.combine(grouped.rows_by_rows(dh2_AF, open_weight(self.v1)), None)

    def gradients(self) -> tuple[Tensor | None, ...]:
        flat = [gradient for pair in self.dpairs for gradient in pair]
        return self.dx_TD, self.ddropped_TD, None, None, None, *flat


class _LowRank:
    """The matrix products of the adapters, with a shared A or with one A per expert."""

    def __init__(self, grouped: Grouped, options: Options) -> None:
        self.grouped, self.options = grouped, options

    def scaled(self, low_AR: Tensor) -> Tensor:
        return low_AR.mul_(self.options.scale)

    def dropped(self, act_AF: Tensor, seed: int) -> Tensor:
        """Apply dropout. The same seed drops the same elements, so no mask needs to be saved."""
        if not self.options.dropout:
            return act_AF
        generator = torch.Generator(act_AF.device).manual_seed(seed)
        kept = 1 - self.options.dropout
        return act_AF * torch.empty_like(act_AF).bernoulli_(kept, generator=generator).div_(kept)

    def down(self, x_TD: Tensor, A: Tensor, x_AD: Tensor | None = None) -> Tensor:
        """[A, R]: scale * A x. A shared A is applied once per token."""
        if not self.options.per_expert:
            return self.grouped.gather(self.scaled(torch.mm(x_TD, A.t())))
        return self.scaled(self.grouped.rows_by_columns(self.grouped.gather(x_TD) if x_AD is None else x_AD, A))

    def down_gradient(self, dlow_AR: Tensor, x_TD: Tensor, x_AD: Tensor | None = None) -> Tensor:
        """Return dlow^T x, which is the gradient of A if dlow is the gradient of A x. For w2, the arguments are low and
        dy instead."""
        if not self.options.per_expert:
            return torch.mm(self.grouped.combine(dlow_AR, None).t(), x_TD)
        return self.grouped.weight_gradient(dlow_AR, self.grouped.gather(x_TD) if x_AD is None else x_AD)

    def preactivation(self, x_AD: Tensor, dropped_TD: Tensor, w: Tensor, A: Tensor | None, B: Tensor | None) -> Tensor:
        h_AF = self.grouped.rows_by_columns(x_AD, self.options.open_weight(w))
        return h_AF if A is None or B is None else h_AF.add_(self.grouped.rows_by_columns(self.down(dropped_TD, A), B))

    def gradients(
        self, dh_AF: Tensor, x_TD: Tensor, A: Tensor | None, B: Tensor | None, dx_TD: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the gradients of A and B, and add the adapter's contribution to the gradient of x to dx_TD."""
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
