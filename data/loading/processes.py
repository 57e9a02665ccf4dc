"""What the system says about a process that does not answer."""

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

import psutil

_STATES = {
    psutil.STATUS_STOPPED: "is stopped (SIGSTOP)",
    psutil.STATUS_TRACING_STOP: "is stopped by a debugger",
    psutil.STATUS_DISK_SLEEP: "waits for a file system or a device (state D)",
    psutil.STATUS_RUNNING: "is computing (state R)",
}


def start_time(pid: int) -> float:
    """When a process started. Raises psutil.NoSuchProcess when it has ended.

    On Linux in ticks since the boot: psutil adds the time of the boot, which moves when the clock is set.
    """
    process = psutil.Process(pid)
    if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        raise psutil.ZombieProcess(pid)
    stat = Path(f"/proc/{pid}/stat")
    # The second field is the program's name in parentheses, with whatever is in it; the start time is the 22nd.
    return float(stat.read_text().rpartition(")")[2].split()[19]) if psutil.LINUX else process.create_time()


def is_alive(pid: int, started: float) -> bool:
    """Whether the process that began then exists: neither has it ended, nor has another one its pid."""
    try:
        return start_time(pid) == started
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError):
        return psutil.pid_exists(pid)  # such as another user's, where /proc hides these


def machine() -> tuple[str, str, str]:
    """Within it a pid is one process. Containers may share a hostname, and have a pid namespace each."""
    boot_id = namespace = ""
    with suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return socket.gethostname(), boot_id, namespace


def state(pid: int) -> str:
    """Such as `is stopped (SIGSTOP)`: to be put behind the name of a process of this machine."""
    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return "no longer exists"
    except (psutil.Error, OSError):
        return "cannot be looked at"
    if status == psutil.STATUS_ZOMBIE:
        return "has ended"
    return _STATES.get(status, "is waiting (state S)")


def has_ended(pid: int) -> bool:
    """Whether or not its parent has asked for its exit code."""
    try:
        start_time(pid)
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, OSError):
        pass
    return False


def is_stopped(pid: int) -> bool:
    with suppress(psutil.Error, OSError):
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    return False


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Unless it has ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
