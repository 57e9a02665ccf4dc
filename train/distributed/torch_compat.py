"""Patches of torch. Each patch states its purpose and has a probe, so that torch versions that do not need the patch
are left unchanged.

All patches are for torch 2.7 (requirements-classic.lock). They can be deleted when torch 2.7 is no longer supported.
"""

import torch
import torch.distributed as dist


def patch_fsdp2_on_gloo() -> list[str]:
    """Fix FSDP2 on CPU ranks with torch 2.7. Must be called on every rank before fully_shard.

    Returns the names of the applied patches, for tests.
    """
    if dist.get_backend() != "gloo":
        return []
    patched = []
    if all_reduce_asserts_an_event():
        setattr(torch.cpu.Stream, "record_event", lambda self: torch.cpu.Event())  # noqa: B010
        if not torch.accelerator.is_available():
            # If the event of a frozen unit is pending at the end of backward, FSDP2 makes this stream wait for it.
            torch.accelerator.current_stream = lambda device=None: torch.cpu.current_stream()
        patched.append("events")
    if not reduce_scatter_averages():
        from torch.distributed.fsdp._fully_shard import _fsdp_collectives

        _fsdp_collectives._get_gradient_divide_factors = _divide_factors
        patched.append("averages")
    return patched


def all_reduce_asserts_an_event() -> bool:
    """Whether torch's HSDP needs the patch. In torch 2.7, the backward pass of HSDP requires an event from every
    stream, but CPU streams record no events (pytorch PR 150316)."""
    try:
        # A private name, imported here because other versions of torch may not have it.
        from torch.distributed.fsdp._fully_shard._fsdp_param_group import AllReduceState
    except ImportError:
        return False
    event = str(AllReduceState.__annotations__.get("event", None))
    return "None" not in event and "Optional" not in event


def reduce_scatter_averages() -> bool:
    """Whether torch's reduce-scatter can average. In torch 2.7, gloo's reduce-scatter computes the sum instead, so
    every gradient is world_size times too large (pytorch issue 162338). Adam is not affected by this factor, but SGD,
    clipping and logged norms are."""
    averaged = torch.empty(1)
    dist.reduce_scatter_tensor(averaged, torch.ones(dist.get_world_size()), op=dist.ReduceOp.AVG)
    return averaged.item() == 1.0


def _divide_factors(
    reduce_scatter_group: dist.ProcessGroup,
    all_reduce_group: dist.ProcessGroup | None,
    reduce_dtype: torch.dtype,
    device_type: str = "",
) -> tuple[float, float]:
    """The factors by which FSDP2 divides gradients before and after the reduction. With these factors, FSDP2 requests a
    sum instead of an average."""
    ranks = reduce_scatter_group.size() * (all_reduce_group.size() if all_reduce_group is not None else 1)
    return 1.0, float(ranks)
