"""Selective activation checkpointing: results of GEMMs are kept, what is cheap between them is computed again."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint


def up_to_last(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """function(*args), of which backward computes again all but the last operation, in the random state of now.

    The last operation is to be a GEMM. Non-reentrant checkpointing stops recomputing as soon as the last tensor that
    backward needs is there, and that is the GEMM's input, not its result.
    """
    result = checkpoint(function, *args, use_reentrant=False)
    assert isinstance(result, Tensor)
    return result


class recomputed(saved_tensors_hooks):
    """Within, whoever saves `tensor` for backward keeps nothing: backward calls make() once, which gives it again.

    For what an autograd Function of ours saves, which up_to_last would run as a whole.
    """

    def __init__(self, tensor: Tensor, make: Callable[[], Tensor]) -> None:
        # No reference: it would keep the tensor.
        which = _identity(tensor)
        placeholder, made = object(), []
        device = tensor.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device)

        def pack(saved: Tensor) -> Any:
            # Detached: the result of an operation, saved by it, would else keep the whole graph for ever.
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
    storage = tensor.untyped_storage()._cdata  # unlike data_ptr, also of tensors without data
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


_WRAPPED = "_checkpoint_wrapped_module."


def named_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The model's parameters under their own names, without what activation checkpointing puts between."""
    return [(name.replace(_WRAPPED, ""), param) for name, param in model.named_parameters()]
