"""Speed of collectives between ranks: gloo on CPUs, NCCL on GPUs.

Bandwidths are defined as in nccl-tests ("bus bandwidth"), so that with equal links they do not depend on the number of
ranks. See https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md.
"""

import time
from collections.abc import Callable, Iterator
from typing import Literal

import torch
import torch.distributed as dist

from data.base.sizes import format_bytes
from train.doctor.check import Check, slow_if

Kind = Literal["all-reduce", "all-to-all"]

_SIZES = {"cpu": (2**20, 2**24), "cuda": (2**20, 2**26, 2**29)}
"""Sizes, in bytes, of the tensor that each rank passes to a collective, by type of device."""
_REPEATS = {"cpu": 3, "cuda": 10}
_LEAST_GB_S = {"cpu": 0.1, "cuda": 5.0}
"""Lowest acceptable bandwidth in 10^9 bytes per second. Ethernet at 1 Gbit/s, NCCL over sockets and old generations of
PCIe are slower."""
_FIX = {
    "cpu": "select the fast network for gloo (GLOO_SOCKET_IFNAME), and end other programs on the nodes",
    "cuda": (
        "check which transport NCCL uses (NCCL_DEBUG=INFO): NVLink within a node, InfiniBand between nodes; "
        "NCCL_SOCKET_IFNAME and NCCL_IB_HCA select the network"
    ),
}


def check_collectives(device: torch.device) -> Iterator[Check]:
    """Measure the collectives. Every rank must call this, in a process group with the device's backend."""
    backend = "NCCL" if device.type == "cuda" else "gloo"
    for kind in ("all-reduce", "all-to-all"):
        speeds = {size: bandwidth(kind, size, device) for size in _SIZES[device.type]}
        found = ", ".join(f"{format_bytes(size)}: {{}} GB/s" for size in speeds)
        check = Check(
            name=f"{kind} ({backend})",
            status="ok",
            found=found,
            numbers=tuple(speeds.values()),
            fix=_FIX[device.type],
        )
        yield slow_if(max(speeds.values()) < _LEAST_GB_S[device.type], check)


def bandwidth(kind: Kind, n_bytes: int, device: torch.device) -> float:
    """Return the bus bandwidth of the slowest rank in GB/s. Every rank must call this."""
    world_size = dist.get_world_size()
    x = torch.ones(-(-n_bytes // 4 // world_size) * world_size, device=device)
    y = torch.empty_like(x)

    def reduce() -> None:
        dist.all_reduce(x)
        x.div_(world_size)  # prevents overflow

    exchange: Callable[[], object] = reduce if kind == "all-reduce" else lambda: dist.all_to_all_single(y, x)
    exchange()
    seconds = torch.tensor([_seconds(exchange, _REPEATS[device.type], device)], dtype=torch.float64)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    passes = (2 if kind == "all-reduce" else 1) * (world_size - 1) / world_size
    return passes * x.nbytes / seconds.item() / 1e9


def _seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Synchronize all ranks, and then measure the seconds per call of `work`."""
    dist.all_reduce(torch.zeros(1))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats
