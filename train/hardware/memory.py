"""How much memory a rank's GPU, or this machine, has."""

import os
from pathlib import Path

import psutil

from train.hardware.device import Device


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


def cgroup_limits(membership: Path, root: Path) -> list[int]:
    """The limits (cgroup v2's memory.max, v1's memory.limit_in_bytes) of the process's group and of all above it."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top, file = root, "memory.max"
        elif "memory" in controllers.split(","):
            top, file = root / "memory", "memory.limit_in_bytes"
        else:
            continue
        # Inside a container the path may be the host's, which is not there: its top is the container's own group.
        below = top / group.lstrip("/")
        for folder in [below, *below.parents[: len(below.parts) - len(top.parts)]]:
            try:
                text = (folder / file).read_text().strip()
            except OSError:
                continue
            if text.isdecimal():
                limits.append(int(text))
    return limits
