"""The folders that a run writes to: speed, free space, and file locks.

Test files are written to the folder or its nearest existing parent, and deleted afterwards.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.base.sizes import format_bytes
from train.checkpoint.save_folder import existing_parent
from train.checkpoint.saving.space import checkpoint_bytes, refuse_space, space_warning
from train.config.schema import TrainConfig
from train.doctor.check import Check, slow_if

_BYTES, _CHUNK = 64 * 2**20, 4 * 2**20
_SLOW_MB_S = 100.0
"""A disk or network drive is reported as slow below this speed in 10^6 bytes per second. Current hard disks are
faster."""
_LEAST_FREE = 2**30
_LOCK_SECONDS = 30
_OTHER_PROCESS = """\
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1], "a"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(3)
"""
"""A script that exits with code 3 if another process holds the lock."""
_HELD = 3


class Folder(NamedTuple):
    key: str
    """The config key that specifies the folder."""
    path: Path


def check_speed(folder: Folder) -> Iterator[Check]:
    """Measure writing with fsync, and reading after dropping the page cache. Raises OSError."""
    part = os.urandom(_CHUNK)
    with tempfile.TemporaryFile(dir=existing_parent(folder.path), buffering=0) as file:
        start = time.perf_counter()
        for _ in range(_BYTES // _CHUNK):
            file.write(part)
        os.fsync(file.fileno())
        written = time.perf_counter()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        begun = time.perf_counter()
        while file.read(_CHUNK):
            pass
        seconds = written - start, time.perf_counter() - begun
    speeds = _BYTES / 1e6 / seconds[0], _BYTES / 1e6 / seconds[1]
    fix = "specify a folder on a faster disk, or stop other programs that use this disk"
    found = f"{format_bytes(_BYTES)} written and synced at {{}} MB/s, read at {{}} MB/s"
    check = Check(name=f"{folder.key}: speed", status="ok", found=found, numbers=speeds, fix=fix)
    yield slow_if(min(speeds) < _SLOW_MB_S, check)


def check_free(folder: Folder) -> Iterator[Check]:
    """Check that a folder whose future size is unknown has some free space. Raises OSError."""
    usage = shutil.disk_usage(existing_parent(folder.path))
    if not usage.total:
        yield Check(name=f"{folder.key}: space", status="ok", found="the file system does not report its size")
        return
    full = usage.free < _LEAST_FREE
    yield Check(
        name=f"{folder.key}: space",
        status="wrong" if full else "ok",
        found=f"{{}}gb free of {format_bytes(usage.total)}",
        numbers=(usage.free / 2**30,),
        fix="free some space, or specify a folder on another disk" if full else "",
    )


def check_checkpoints(config: TrainConfig, folder: Path, world_size: int) -> Iterator[Check]:
    """Check the free space for checkpoints. Raises ConfigError if there is not enough space for one checkpoint."""
    refuse_space(config, folder, world_size=world_size)
    too_small = space_warning(config, folder, None, world_size=world_size) is not None
    found = f"a checkpoint takes {format_bytes(checkpoint_bytes(config, world_size))}, {{}}gb free"
    check = Check(
        name="save_folder: space",
        status="ok",
        found=f"{found}, not enough for all checkpoints that will be kept" if too_small else found,
        numbers=(shutil.disk_usage(existing_parent(folder)).free / 2**30,),
        fix="free some space, or keep fewer checkpoints (save_num_checkpoints_to_keep)",
    )
    yield slow_if(too_small, check)


def check_lock(folder: Folder) -> Iterator[Check]:
    """Check that a process cannot acquire a lock while another process holds it, and can acquire it after its release.
    Raises OSError."""
    name = f"{folder.key}: locks"
    with tempfile.NamedTemporaryFile(dir=existing_parent(folder.path), prefix=".doctor-") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = _other_process(file.name)
        fcntl.flock(file, fcntl.LOCK_UN)
        free = _other_process(file.name)
    if (held, free) == (_HELD, 0):
        yield Check(name=name, status="ok", found="flock works between processes of this node")
        return
    found = (
        "a process can acquire a lock that another process holds"
        if held == 0
        else f"flock fails in another process (exit codes {held}, {free})"
    )
    yield Check(name=name, status="wrong", found=found, fix=f"{LOCK_FIX}, or specify a folder on a local disk")


LOCK_FIX = "mount the file system with lock support (Lustre: -o flock; NFS: without nolock and local_lock)"


def _other_process(file: str) -> int:
    # With -I and -S, Python does not read site-packages and starts in 20 ms.
    command = [sys.executable, "-I", "-S", "-c", _OTHER_PROCESS, file]
    return subprocess.run(command, capture_output=True, timeout=_LOCK_SECONDS, check=False).returncode
