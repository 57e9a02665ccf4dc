"""Selective activation checkpointing: the results of GEMMs are kept, and the cheap operations between GEMMs are
recomputed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint


def up_to_last(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """Return function(*args). Backward recomputes all operations except the last, with the same random state.

    The last operation must be a GEMM. Non-reentrant checkpointing stops as soon as it has recomputed the last tensor
    that backward needs. This tensor is the input of the GEMM, so the GEMM itself is not recomputed.
    """
    result = checkpoint(function, *args, use_reentrant=False)
    assert isinstance(result, Tensor)
    return result


class recomputed(saved_tensors_hooks):
    """Within this context, operations that save `tensor` for backward do not keep this tensor in memory. Backward calls
    make() once to recompute the tensor.

    Used for tensors that are saved by our own autograd Functions, because up_to_last would rerun a whole Function.
    """

    def __init__(self, tensor: Tensor, make: Callable[[], Tensor]) -> None:
        # A reference to the tensor would keep it in memory.
        which = _identity(tensor)
        placeholder, made = object(), []
        device = tensor.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device)

        def pack(saved: Tensor) -> Any:
            # The tensor is detached, because otherwise an operation that saves its own result would keep the whole
            # graph in memory.
            return placeholder if _identity(saved) == which else saved.detach()

        def unpack(packed: Any) -> Tensor:
            if packed is not placeholder:
                return packed
            if not made:
                with torch.no_grad(), torch.autocast(device, dtype=dtype, enabled=autocast):
                    made.append(make())
            return made[0]

        super().__init__(pack, unpack)


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage()._cdata  # unlike data_ptr, this also works for tensors without data
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


_WRAPPED = "_checkpoint_wrapped_module."


def named_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The model's parameters by name, without the prefixes that activation checkpointing adds to the names."""
    return [(name.replace(_WRAPPED, ""), param) for name, param in model.named_parameters()]
