"""The experts' GLU as one autograd Function for all backends: what is computed, what is kept, and the gradients.

An assignment a brings token t to expert e with the router's weight p_a. With w1_e, v1_e and w2_e [F, D] of that expert:

    h1_a = x_t w1_e^T          h2_a = x_t v1_e^T          act_a = silu(h1_a) * h2_a
    y_t  = sum of p_a act_a w2_e over the assignments of t

Let dy be the gradient of y, and dact_a that of act_a if p_a were 1. Then

    dact_a = dy_t w2_e^T       dp_a  = <act_a, dact_a>
    dh1_a  = p_a dact_a * h2_a * silu'(h1_a)              dh2_a = p_a dact_a * silu(h1_a)
    dw1_e  = sum of dh1_a^T x_t,      dv1_e = sum of dh2_a^T x_t,      dw2_e = sum of (p_a act_a)^T dy_t,
             each over the assignments of e
    dx_t   = sum of dh1_a w1_e + dh2_a v1_e over the assignments of t

Kept for backward are x, p, the weights, h1 and h2; with recompute h1 and h2 are not kept but computed again. act is
computed again in any case, by elementwise operations. No gradient needs an expert's output: dp_a comes from act_a. x is
gathered again, because its copies for all assignments take K times its memory.

The elementwise equations are in glu.py. Those with weights are `Products`: backends differ in them alone. Frozen
weights with adapters (lora/experts.py) compute the same with w_e + s B_e A_e in the place of w_e, and the gradients of
A and B in the place of dw_e.

Shapes: T tokens, K experts a token, A = T*K assignments sorted by expert, N of them that are computed together, D
d_model, E experts, F ffn_hidden_size.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.models.experts.glu import glu, glu_backward


class Products(Protocol):
    """The equations with weights, for N assignments sorted by expert: all of them, or those of one expert."""

    def empty_like(self, h_NF: Tensor, /) -> Tensor:
        """Memory for a result that is used while these assignments are computed, not later."""
        ...

    def preactivations(self) -> tuple[Tensor, Tensor]:
        """h1 and h2 [N, F]."""
        ...

    def add_output(self, act_NF: Tensor, weights_TK: Tensor, /) -> None:
        """Adds to y."""
        ...

    def activation_gradient(self, dy_TD: Tensor, /) -> Tensor:
        """dact [N, F], which the caller overwrites."""
        ...

    def add_output_weight_gradient(self, act_NF: Tensor, /) -> None:
        """dw2, where it is needed, from p act and the dy that activation_gradient was given."""
        ...

    def add_input_gradients(self, dh1_NF: Tensor, dh2_NF: Tensor, /) -> None:
        """dw1, dv1 and dx, where they are needed."""
        ...


class LayerProducts(Protocol):
    """A layer's products, made anew for forward and for backward."""

    order_A: Tensor
    """Where each sorted assignment stands in [T, K] read row by row."""
    splits: list[int]
    """How many assignments each part has."""

    def parts(self, keep: bool) -> Iterable[Products]:
        """The assignments, all at once or expert by expert. keep: the preactivations are used after their part too."""
        ...

    def output(self) -> Tensor:
        """y [T, D], after add_output of every part."""
        ...

    def gradients(self) -> tuple[Tensor | None, ...]:
        """Of each tensor that the products were made of, None where it is not needed."""
        ...


ProductsOf = Callable[[Sequence[Any], Sequence[bool]], LayerProducts]
"""(x and the weights, which of them need a gradient) -> the layer's products. Holds no tensor that needs a gradient."""


def experts_glu(products_of: ProductsOf, recompute: bool, weights_TK: Tensor, *tensors: Tensor | None) -> Tensor:
    """y [T, D]. The tensors are what products_of takes: x [T, D], then the experts' weights."""
    x_TD = tensors[0]
    assert x_TD is not None
    if not x_TD.shape[0]:
        # Kernels cannot be launched for nothing, but zero gradients have to flow all the same.
        trained = [tensor for tensor in tensors[1:] if tensor is not None and tensor.requires_grad]
        return x_TD * weights_TK.sum() + 0 * sum(tensor.sum() for tensor in trained)
    return _ExpertsGLU.apply(products_of, recompute, weights_TK, *tensors)  # pyright: ignore[reportReturnType]


class _ExpertsGLU(torch.autograd.Function):
    """The equations at the top of this file."""

    @staticmethod
    def forward(
        ctx: Any, products_of: ProductsOf, recompute: bool, weights_TK: Tensor, *tensors: Tensor | None
    ) -> Tensor:
        products = products_of(tensors, ctx.needs_input_grad[3:])
        kept: list[Tensor] = []
        for part in products.parts(keep=not recompute):
            h1_NF, h2_NF = part.preactivations()
            part.add_output(glu(h1_NF, h2_NF, part.empty_like(h1_NF)), weights_TK)
            if not recompute:
                kept += (h1_NF, h2_NF)
        ctx.save_for_backward(weights_TK, *tensors, *kept)
        ctx.products_of, ctx.recompute, ctx.n_tensors = products_of, recompute, len(tensors)
        return products.output()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weights_TK, *kept = ctx.saved_tensors
        tensors = [kept.pop(0) for _ in range(ctx.n_tensors)]
        dy_TD = grad_outputs[0].contiguous()
        products = ctx.products_of(tensors, ctx.needs_input_grad[3:])
        weights_A = weights_TK.flatten()[products.order_A]
        dweights_A = torch.empty_like(weights_A)
        of_parts = weights_A.split(products.splits), dweights_A.split(products.splits)
        for part, weights_N, dweights_N in zip(products.parts(keep=False), *of_parts, strict=True):
            h1_NF, h2_NF = part.preactivations() if ctx.recompute else (kept.pop(0), kept.pop(0))
            dact_NF = part.activation_gradient(dy_TD)
            memory = part.empty_like(h1_NF), part.empty_like(h1_NF)
            dh1_NF, dh2_NF, act_NF, products_N = glu_backward(dact_NF, h1_NF, h2_NF, weights_N, memory)
            dweights_N.copy_(products_N)
            part.add_output_weight_gradient(act_NF)
            # As soon as they have been used: here a backend that computes all experts at once needs the most memory.
            del dact_NF, act_NF, memory, h1_NF, h2_NF
            part.add_input_gradients(dh1_NF, dh2_NF)
        dweights_TK = None
        if ctx.needs_input_grad[2]:
            dweights_TK = torch.empty_like(dweights_A).index_copy_(0, products.order_A, dweights_A)
            dweights_TK = dweights_TK.view(weights_TK.shape)
        return None, None, dweights_TK, *products.gradients()
