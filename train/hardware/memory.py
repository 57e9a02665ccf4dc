"""The memory of a rank's GPU, and of this machine."""

import os
from contextlib import suppress
from pathlib import Path

import psutil

from train.hardware.device import Device

_LIMITS = ("memory.max", "memory.limit_in_bytes")
_USED = ("memory.current", "memory.usage_in_bytes")
"""Names of the files of a control group that contain its limit and its usage: first the name in cgroup v2, then the
name in cgroup v1."""


def available_memory(device: Device) -> float:
    """Memory of this rank's GPU, or of the machine, in bytes."""
    return gpu_memory() if device == "gpu" else cpu_memory()


def gpu_memory() -> float:
    """Memory of this rank's GPU in bytes."""
    import torch

    device = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    return float(torch.cuda.get_device_properties(device).total_memory)


def cpu_memory() -> float:
    """Memory of this machine in bytes: the minimum of the physical memory and the limits of the process's control
    groups."""
    limits = cgroup_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return float(min([psutil.virtual_memory().total, *limits]))


def free_cpu_memory() -> float:
    """Memory in bytes that can still be allocated, including reclaimable page cache. Both the machine and each of the
    process's control groups limit this memory; the smallest limit is returned."""
    left = cgroup_free(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return float(min([psutil.virtual_memory().available, *left]))


def cgroup_limits(membership: Path, root: Path) -> list[int]:
    """The memory limits of the process's control group and its ancestors."""
    return [limit for folder in _cgroups(membership, root) if (limit := _number(folder, *_LIMITS)) is not None]


def cgroup_free(membership: Path, root: Path) -> list[int]:
    """The remaining memory of the same control groups as in cgroup_limits, including the file pages that the kernel
    would reclaim first."""
    return [left for folder in _cgroups(membership, root) for left in _left(folder)]


def _left(folder: Path) -> list[int]:
    """The remaining memory of a control group, as a list of one number. Empty if the group has no limit."""
    limit, used = _number(folder, *_LIMITS), _number(folder, *_USED)
    if limit is None or used is None:
        return []
    droppable = 0
    with suppress(OSError, ValueError):
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        # In cgroup v1, the counters that include child groups have other names.
        droppable = int(counts.get("total_inactive_file", counts.get("inactive_file", "0")))
    return [max(limit - used + droppable, 0)]


def _number(folder: Path, *names: str) -> int | None:
    """The number in the first of these files that exists. None if the file contains something else, such as `max`."""
    for name in names:
        with suppress(OSError):
            text = (folder / name).read_text().strip()
            return int(text) if text.isdecimal() else None
    return None


def _cgroups(membership: Path, root: Path) -> list[Path]:
    """Folders of the process's control group and its ancestors."""
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
        # In a container, `group` may be a path on the host that does not exist in the container. In this case, the
        # container's own group is at `top`.
        below = top / group.lstrip("/")
        found += [below, *below.parents[: len(below.parts) - len(top.parts)]]
    return found
