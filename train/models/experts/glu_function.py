"""The experts' GLU as one autograd Function for all backends: the computation, the saved tensors, and the gradients.

Assignment a sends token t to expert e with router weight p_a. w1_e, v1_e and w2_e [F, D] are the weights of expert e:

    h1_a = x_t w1_e^T          h2_a = x_t v1_e^T          act_a = silu(h1_a) * h2_a
    y_t  = sum of p_a act_a w2_e over the assignments of t

Let dy be the gradient of y, and dact_a the gradient of act_a for p_a = 1. Then

    dact_a = dy_t w2_e^T       dp_a  = <act_a, dact_a>
    dh1_a  = p_a dact_a * h2_a * silu'(h1_a)              dh2_a = p_a dact_a * silu(h1_a)
    dw1_e  = sum of dh1_a^T x_t,      dv1_e = sum of dh2_a^T x_t,      dw2_e = sum of (p_a act_a)^T dy_t,
             each over the assignments of e
    dx_t   = sum of dh1_a w1_e + dh2_a v1_e over the assignments of t

Saved for backward are x, p, the weights, h1 and h2. With recompute, h1 and h2 are recomputed instead of saved. act is
always recomputed, by elementwise operations. The outputs of experts are not needed, because dp_a is computed from
act_a. x is gathered again in backward, because saving a copy for each assignment would take K times the memory of x.

The elementwise equations are in glu.py. The equations with weights are in `Products`, the only part that differs
between backends. For frozen weights with adapters (lora/experts.py), w_e is replaced by w_e + s B_e A_e, and dw_e by
the gradients of A and B.

Shapes: T tokens, K experts per token, A = T*K assignments sorted by expert, N assignments computed together, D d_model,
E experts, F ffn_hidden_size.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.models.experts.glu import glu, glu_backward


class Products(Protocol):
    """The equations with weights, for N assignments sorted by expert: all assignments, or those of one expert."""

    def empty_like(self, h_NF: Tensor, /) -> Tensor:
        """Return memory for a result that is used only while these assignments are computed."""
        ...

    def preactivations(self) -> tuple[Tensor, Tensor]:
        """h1 and h2 [N, F]."""
        ...

    def add_output(self, act_NF: Tensor, weights_TK: Tensor, /) -> None:
        """Add the weighted outputs of these assignments to y."""
        ...

    def activation_gradient(self, dy_TD: Tensor, /) -> Tensor:
        """dact [N, F]. The caller may overwrite it."""
        ...

    def add_output_weight_gradient(self, act_NF: Tensor, /) -> None:
        """Compute dw2, if needed, from `act_NF` (p times act) and the dy that was passed to activation_gradient."""
        ...

    def add_input_gradients(self, dh1_NF: Tensor, dh2_NF: Tensor, /) -> None:
        """Compute dw1, dv1 and dx, if needed."""
        ...


class LayerProducts(Protocol):
    """Computes the `Products` of a layer, for all assignments or for one expert at a time. A new object is created for
    each forward and each backward."""

    order_A: Tensor
    """The index of each sorted assignment in the flattened tensor [T, K]."""
    splits: list[int]
    """The number of assignments of each part."""

    def parts(self, keep: bool) -> Iterable[Products]:
        """Yield all assignments, either as a single part or as one part per expert. keep: whether the pre-activations
        of a part are still needed after the next part is computed."""
        ...

    def output(self) -> Tensor:
        """y [T, D], after add_output was called for every part."""
        ...

    def gradients(self) -> tuple[Tensor | None, ...]:
        """The gradient of each input tensor; None for a gradient that is not needed."""
        ...


ProductsOf = Callable[[Sequence[Any], Sequence[bool]], LayerProducts]
"""Returns the LayerProducts of a layer. The arguments are the tensors (x and the weights), and whether each of them
needs a gradient. The function itself must not hold a reference to a tensor that needs a gradient."""


def experts_glu(products_of: ProductsOf, recompute: bool, weights_TK: Tensor, *tensors: Tensor | None) -> Tensor:
    """Return y [T, D]. tensors: the inputs of products_of, which are x [T, D] and then the experts' weights."""
    x_TD = tensors[0]
    assert x_TD is not None
    if not x_TD.shape[0]:
        # Kernels cannot be launched on empty tensors, and the gradients must be zeros rather than None.
        trained = [tensor for tensor in tensors[1:] if tensor is not None and tensor.requires_grad]
        return x_TD * weights_TK.sum() + 0 * sum(tensor.sum() for tensor in trained)
    return _ExpertsGLU.apply(products_of, recompute, weights_TK, *tensors)  # pyright: ignore[reportReturnType]


class _ExpertsGLU(torch.autograd.Function):
    """Implements the equations in the docstring of this module."""

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
            # Freed here, because memory use peaks in the next lines if a backend computes all experts together.
            del dact_NF, act_NF, memory, h1_NF, h2_NF
            part.add_input_gradients(dh1_NF, dh2_NF)
        dweights_TK = None
        if ctx.needs_input_grad[2]:
            dweights_TK = torch.empty_like(dweights_A).index_copy_(0, products.order_A, dweights_A)
            dweights_TK = dweights_TK.view(weights_TK.shape)
        return None, None, dweights_TK, *products.gradients()
