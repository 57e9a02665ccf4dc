"""The state of a process that does not respond, as reported by the operating system."""

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

import psutil

_STATES = {
    psutil.STATUS_STOPPED: "is stopped (SIGSTOP)",
    psutil.STATUS_TRACING_STOP: "is stopped by a debugger",
    psutil.STATUS_DISK_SLEEP: "is waiting for a file system or a device (state D)",
    psutil.STATUS_RUNNING: "is computing (state R)",
}


def start_time(pid: int) -> float:
    """Start time of a process. Raises psutil.NoSuchProcess if the process has ended.

    On Linux, the start time is in clock ticks since boot. psutil's start time is not used on Linux, because psutil adds
    the boot time, which changes when the clock is set.
    """
    process = psutil.Process(pid)
    if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
        raise psutil.ZombieProcess(pid)
    stat = Path(f"/proc/{pid}/stat")
    # The start time is field 22. The second field is the program's name in parentheses, and may contain any characters.
    return float(stat.read_text().rpartition(")")[2].split()[19]) if psutil.LINUX else process.create_time()


def is_alive(pid: int, started: float) -> bool:
    """Whether the process that started at this time still exists. False if its pid now belongs to another process."""
    try:
        return start_time(pid) == started
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError):
        return psutil.pid_exists(pid)  # for example, /proc may hide processes of other users


def machine() -> tuple[str, str, str]:
    """A text that identifies the machine or container in which pids are valid. Containers may share a hostname, but
    have separate pid namespaces."""
    boot_id = namespace = ""
    with suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return socket.gethostname(), boot_id, namespace


def state(pid: int) -> str:
    """The state of a local process as a clause that follows its name, such as `is stopped (SIGSTOP)`."""
    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return "no longer exists"
    except (psutil.Error, OSError):
        return "has an unknown state"
    if status == psutil.STATUS_ZOMBIE:
        return "has ended"
    return _STATES.get(status, "is waiting (state S)")


def has_ended(pid: int) -> bool:
    """Whether the process has ended, even if its parent has not waited for it yet."""
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
    """Send the signal, unless the process has ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
