"""Patches of torch. Each says what it is for and has a probe: a torch that does not need it is left as it is.

All of them are for torch 2.7, which requirements-classic.lock has, and can be deleted with it.
"""

import torch
import torch.distributed as dist


def patch_fsdp2_on_gloo() -> list[str]:
    """Makes FSDP2 right on CPU ranks, which torch 2.7 does not: call it on every rank before fully_shard.

    Returns the names of what was patched, for tests.
    """
    if dist.get_backend() != "gloo":
        return []
    patched = []
    if all_reduce_asserts_an_event():
        setattr(torch.cpu.Stream, "record_event", lambda self: torch.cpu.Event())  # noqa: B010
        if not torch.accelerator.is_available():
            # Where an event of a frozen unit is still open at the end of backward, FSDP2 asks for this one to wait.
            torch.accelerator.current_stream = lambda device=None: torch.cpu.current_stream()
        patched.append("events")
    if not reduce_scatter_averages():
        from torch.distributed.fsdp._fully_shard import _fsdp_collectives

        _fsdp_collectives._get_gradient_divide_factors = _divide_factors
        patched.append("averages")
    return patched


def all_reduce_asserts_an_event() -> bool:
    """torch 2.7: HSDP's backward wants an event of every stream, and CPU streams record none (pytorch PR 150316)."""
    try:
        # Private, and imported where a torch that has moved it is no error.
        from torch.distributed.fsdp._fully_shard._fsdp_param_group import AllReduceState
    except ImportError:
        return False
    event = str(AllReduceState.__annotations__.get("event", None))
    return "None" not in event and "Optional" not in event


def reduce_scatter_averages() -> bool:
    """torch 2.7: asked to average, gloo's reduce-scatter sums, so that every gradient is world_size times too large
    (pytorch issue 162338). Adam hides it; SGD, clipping and logged norms show it."""
    averaged = torch.empty(1)
    dist.reduce_scatter_tensor(averaged, torch.ones(dist.get_world_size()), op=dist.ReduceOp.AVG)
    return averaged.item() == 1.0


def _divide_factors(
    reduce_scatter_group: dist.ProcessGroup,
    all_reduce_group: dist.ProcessGroup | None,
    reduce_dtype: torch.dtype,
    device_type: str = "",
) -> tuple[float, float]:
    """What FSDP2 divides by before and after reducing: with these it asks for a sum."""
    ranks = reduce_scatter_group.size() * (all_reduce_group.size() if all_reduce_group is not None else 1)
    return 1.0, float(ranks)
