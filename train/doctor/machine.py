"""The resources of a node other than GPUs: memory, shared memory, limits."""

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from data.base.sizes import format_bytes
from data.base.workers import all_cores
from train.config.schema import TrainConfig
from train.doctor.check import Check, slow_if
from train.hardware.device import Device
from train.hardware.memory import cpu_memory, free_cpu_memory
from train.planning.machine import check_machine

_SHM = Path("/dev/shm")
_SHM_CPU, _SHM_GPU = 128 * 2**20, 2**30
"""Required shared memory in bytes: on a CPU, for the batches of loader workers; on a GPU, for these batches and for
NCCL. NCCL's documentation recommends docker run --shm-size=1g. Docker's default of 64 MB is not enough."""
_FILES_BASE, _FILES_PER_RANK = 512, 8
"""Number of open files that a rank requires: for shards, logs and libraries (base), and for its connections to each
other rank in several process groups (per rank)."""
_FREE = 0.5
"""If less than this share of the memory is free, the check reports that other programs are running."""
_INFINIBAND = Path("/sys/class/infiniband")


def check_memory() -> Iterator[Check]:
    total, free = cpu_memory(), free_cpu_memory()
    found = f"{{}}gb free of {format_bytes(total, down=True)}, {all_cores()} cores"
    check = Check(
        name="memory", status="ok", found=found, numbers=(free / 2**30,), fix="end other programs on the node"
    )
    yield slow_if(free < _FREE * total, check)


def check_fits(config: TrainConfig, world_size: int, device: Device) -> Iterator[Check]:
    """Check that the lower bound of a rank's memory fits on this machine. Raises ConfigError."""
    check_machine(config, world_size, device)
    yield Check(name="memory of a rank", status="ok", found="the lower bound fits into memory (scripts/plan.py)")


def check_shared_memory(*, gpu: bool) -> Iterator[Check]:
    if not _SHM.is_dir():
        fix = "mount a tmpfs on /dev/shm (mount -t tmpfs shm /dev/shm)"
        yield Check(name="/dev/shm", status="wrong", found="does not exist", fix=fix)
        return
    usage = shutil.disk_usage(_SHM)
    needed = _SHM_GPU if gpu else _SHM_CPU
    too_small = usage.free < needed
    fix = (
        f"give the container at least {format_bytes(needed)} of shared memory (docker run --shm-size, or "
        "--ipc=host; in Kubernetes an emptyDir with medium: Memory on /dev/shm)"
    )
    yield Check(
        name="/dev/shm",
        status="wrong" if too_small else "ok",
        found=f"{format_bytes(usage.free, down=True)} free of {format_bytes(usage.total, down=True)}",
        fix=fix if too_small else "",
    )


def check_limits(world_size: int) -> Iterator[Check]:
    """Check the limit on open files and, with InfiniBand, the limit on locked memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _FILES_BASE + _FILES_PER_RANK * world_size
    too_low = soft != resource.RLIM_INFINITY and soft < needed
    fix = f"raise the limit to at least {needed:,} (ulimit -n; Slurm: PropagateResourceLimits; Docker: --ulimit nofile)"
    yield Check(
        name="open files",
        status="wrong" if too_low else "ok",
        found=f"a process may open {_limit(soft)} files (hard limit: {_limit(hard)} files)",
        fix=fix if too_low else "",
    )
    if _INFINIBAND.is_dir() and any(_INFINIBAND.iterdir()):
        locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        limited = locked != resource.RLIM_INFINITY
        yield Check(
            name="locked memory",
            status="wrong" if limited else "ok",
            found=f"with InfiniBand, a process may lock only {_limit(locked)} bytes of memory"
            if limited
            else f"a process may lock {_limit(locked)} bytes of memory",
            fix="set the limit to unlimited (ulimit -l; Docker: --ulimit memlock=-1)" if limited else "",
        )


def _limit(number: int) -> str:
    return "any number of" if number == resource.RLIM_INFINITY else f"{number:,}"
