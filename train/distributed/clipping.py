"""Clips gradients by their total norm. The result is bitwise equal to that of torch's clip_grad_norm_. The computation
is split into separate functions, so that the caller can combine the reduction over ranks with its own reductions.

Each rank uses only its own shards, so the parameters can be on different meshes.
"""

import functools
from collections.abc import Callable, Iterable, Sequence

import torch
from composer.utils import dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from train.config.optimizer import GradientClippingConfig

Copies = Callable[[Tensor], int]


def copies_over_ranks(gradient: Tensor) -> int:
    """The number of ranks that have a copy of each element of the gradient: the world size divided by the sizes of the
    mesh dimensions over which the gradient is sharded. For a gradient without a mesh, the world size."""
    if not isinstance(gradient, DTensor):
        return dist.get_world_size()
    mesh = gradient.device_mesh
    shards = 1
    for size, placement in zip(mesh.shape, gradient.placements, strict=True):
        assert not placement.is_partial(), "gradients must be reduced before clipping"
        shards *= 1 if placement.is_replicate() else size
    return dist.get_world_size() // shards


@torch.no_grad()
def squared_norms(params: Sequence[nn.Parameter], copies: Copies = copies_over_ranks) -> Tensor:
    """[P] in fp64: this rank's part of the squared L2 norm of each parameter's gradient, or 0 if there is no gradient.
    The sum over all ranks counts each element once.

    copies: overrides the number of copies that is derived from the mesh, for gradients that are divided over ranks
    without a DTensor, such as those of experts.
    """
    places: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, param in enumerate(params):
        if param.grad is not None:
            local = _local(param.grad)
            places.setdefault((local.device, local.dtype), []).append(place)
    device = next(iter(places))[0] if places else torch.device("cpu")
    squares_P = torch.zeros(len(params), dtype=torch.float64, device=device)
    for of_kind in places.values():
        gradients = [param.grad for param in map(params.__getitem__, of_kind) if param.grad is not None]
        norms = torch._foreach_norm([_local(gradient) for gradient in gradients])  # pyright: ignore[reportPrivateImportUsage]
        n_copies = torch.tensor([copies(gradient) for gradient in gradients], dtype=torch.float64).to(device)
        # The norms are squared in the dtype of the gradients, because torch reduces the norm of a DTensor in this
        # dtype.
        squares_P[of_kind] = torch.stack(norms).square().to(device, torch.float64) / n_copies
    return squares_P


def total_norm(squares_P: Sequence[float], params: Sequence[nn.Parameter]) -> float:
    """The L2 norm of all gradients, from the squared norms summed over ranks. As in torch, it is computed as the norm
    of the parameters' gradient norms, in the dtype of the gradients."""
    dtypes = [param.grad.dtype for param in params if param.grad is not None]
    dtype = functools.reduce(torch.promote_types, dtypes, torch.bfloat16)
    return torch.linalg.vector_norm(torch.tensor(squares_P, dtype=torch.float64).to(dtype).sqrt()).item()


@torch.no_grad()
def scale_to_norm(params: Iterable[nn.Parameter], norm: float, max_norm: float) -> None:
    """Multiply all gradients by max_norm / (norm + 1e-6) if this factor is below 1."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for gradient in _gradients(params):
        groups.setdefault(gradient.dtype, []).append(_local(gradient))
    for dtype, gradients in groups.items():
        # The factor is rounded as in torch, where the norm has the same dtype as the gradients.
        factor = (max_norm / (torch.tensor(norm, dtype=dtype) + 1e-6)).item()
        if factor < 1:
            torch._foreach_mul_(gradients, factor)  # pyright: ignore[reportPrivateImportUsage]


def clip_gradients(params: Sequence[nn.Parameter], norm: float, clipping: GradientClippingConfig) -> None:
    """Clip the gradients by norm or by value, as configured. norm: the norm of all gradients."""
    if clipping.clipping_type == "norm":
        scale_to_norm(params, norm, clipping.clipping_threshold)
    else:
        torch.nn.utils.clip_grad_value_(params, clipping.clipping_threshold)


def drop_gradients(params: Iterable[nn.Parameter]) -> None:
    """Remove all gradients, so that the optimizer's next step changes neither weights nor moments nor step counters."""
    for param in params:
        param.grad = None


@torch.no_grad()
def not_finite_gradients(named: Sequence[tuple[str, nn.Parameter]]) -> list[str]:
    """The names of the parameters whose gradient on this rank contains NaN values, infinite values, or values whose
    squared norm overflows."""
    return [
        name
        for name, param in named
        if param.grad is not None and not torch.linalg.vector_norm(_local(param.grad)).square().isfinite()
    ]


def _gradients(params: Iterable[nn.Parameter]) -> list[Tensor]:
    return [param.grad for param in params if param.grad is not None]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
