"""How much memory a rank's GPU, or this machine, has."""

import os
from contextlib import suppress
from pathlib import Path

import psutil

from train.hardware.device import Device

_LIMITS = ("memory.max", "memory.limit_in_bytes")
_USED = ("memory.current", "memory.usage_in_bytes")
"""Files of a control group, in v2 and in v1."""


def available_memory(device: Device) -> float:
    """Bytes of this rank's GPU, or of the machine."""
    return gpu_memory() if device == "gpu" else cpu_memory()


def gpu_memory() -> float:
    """Bytes of this rank's GPU."""
    import torch

    device = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    return float(torch.cuda.get_device_properties(device).total_memory)


def cpu_memory() -> float:
    """Bytes of memory this machine gives: the least of what is there and of what control groups allow."""
    limits = cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return float(min([psutil.virtual_memory().total, *limits]))


def free_cpu_memory() -> float:
    """Bytes that this machine can still give, with the pages that it would drop for them: what is free in it, or in
    the control group that is the fullest."""
    left = cgroup_free(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return float(min([psutil.virtual_memory().available, *left]))


def cgroup_limits(membership: Path, root: Path) -> list[int]:
    """The limits (cgroup v2's memory.max, v1's memory.limit_in_bytes) of the process's group and of all above it."""
    return [limit for folder in _cgroups(membership, root) if (limit := _number(folder, *_LIMITS)) is not None]


def cgroup_free(membership: Path, root: Path) -> list[int]:
    """What the same groups have left of their limits, with the pages of files that the kernel would drop first."""
    return [left for folder in _cgroups(membership, root) for left in _left(folder)]


def _left(folder: Path) -> list[int]:
    """Of a control group's limit; nothing where it has none."""
    limit, used = _number(folder, *_LIMITS), _number(folder, *_USED)
    if limit is None or used is None:
        return []
    droppable = 0
    with suppress(OSError, ValueError):
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # v1 counts groups below it under names of their own.
        droppable = int(counts.get("total_inactive_file", counts.get("inactive_file", "0")))
    return [max(limit - used + droppable, 0)]


def _number(folder: Path, *names: str) -> int | None:
    """What the first of these files that is there says; None where it is no number, such as `max`."""
    for name in names:
        with suppress(OSError):
            text = (folder / name).read_text().strip()
            return int(text) if text.isdecimal() else None
    return None


def _cgroups(membership: Path, root: Path) -> list[Path]:
    """Folders of the process's control group and of all above it."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top = root
        elif "memory" in controllers.split(","):
            top = root / "memory"
        else:
            continue
        # Inside a container the path may be the host's, which is not there: its top is the container's own group.
        below = top / group.lstrip("/")
        found += [below, *below.parents[: len(below.parts) - len(top.parts)]]
    return found
