"""Limits on time and memory for chat templates, which are untrusted programs.

A template runs as Python in this process, because a separate process would take longer than the rendering. Long loops
are ended by a signal, and large allocations by a limit of the kernel. A signal cannot interrupt a single long operation
in C. Operations with large integers, the most common kind of long operation, are limited in sandbox.py. Any other long
operation ends the process.
"""

import faulthandler
import os
import resource
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import lru_cache
from types import FrameType, TracebackType
from typing import Any

from data.base.errors import TemplateError

MAX_SECONDS = 5.0
"""Maximum seconds for one rendering, measured as CPU time of the thread, so that the load of the machine does not
matter. Most renderings take less than a thousandth of this time."""
MAX_BYTES = 1 << 30
"""Maximum number of bytes that a rendering may add to the memory of the process. This is enough for several copies of
the largest row that is read (64 MiB)."""
_TICK_SECONDS = 0.25
_KILL_SECONDS = 60.0
"""The process is ended if it runs no line of Python for this many seconds of CPU time."""
_COMPILED = "<template>"
"""The file name that Jinja uses for a template without a file."""
_PAGE_BYTES = resource.getpagesize()


class LimitExceeded(BaseException):
    """A template exceeds a limit. This is not an Exception, because some of Jinja's filters catch Exceptions."""


class TemplateLimits:
    """A context manager that raises a TemplateError if a limit is exceeded.

    The message begins with `subject`. It is a class instead of a generator function, because it is entered for every
    rendering and must take only microseconds.
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject

    def __enter__(self) -> None:
        self._memory_before = _limit_memory()
        self._end = time.thread_time() + MAX_SECONDS
        self._is_main = threading.get_ident() == threading.main_thread().ident
        if self._is_main:
            _start_timers(self)
        else:
            self._trace_before = sys.gettrace()
            sys.settrace(self._on_line)

    def __exit__(self, kind: Any, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._is_main:
            _stop_timers()
        else:
            sys.settrace(self._trace_before)
        if self._memory_before is not None:
            resource.setrlimit(resource.RLIMIT_AS, self._memory_before)
        if isinstance(error, LimitExceeded):
            raise _refusal(self._subject, str(error), traceback) from None
        if isinstance(error, MemoryError):
            text = f"needs more than {MAX_BYTES >> 20:,} MiB of memory for a conversation"
            raise _refusal(self._subject, text, traceback) from None

    def check_time(self) -> None:
        """Raises LimitExceeded if the time limit has been exceeded."""
        now = time.thread_time()
        if now > self._end:
            # Freeing the memory that the template has allocated also takes time, and must not be interrupted.
            self._end = now + MAX_SECONDS
            raise LimitExceeded(f"takes more than {MAX_SECONDS:g} seconds for a conversation")

    def _on_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        """A trace function that checks the time in threads other than the main thread, because signal handlers only run
        in the main thread."""
        self.check_time()
        return self._on_line


_in_main_thread: TemplateLimits | None = None
_handler_is_set = False


def _start_timers(limits: TemplateLimits) -> None:
    global _in_main_thread, _handler_is_set
    if not _handler_is_set:
        # The handler is never removed. Otherwise, a signal that is still pending when the timers stop would end the
        # process.
        signal.signal(signal.SIGPROF, _on_signal)
        # SIGVTALRM prints the stack and ends the process. Registering this handler fails if stderr is not a file.
        with suppress(Exception):
            faulthandler.register(signal.SIGVTALRM, chain=True)
        _handler_is_set = True
    _in_main_thread = limits
    signal.setitimer(signal.ITIMER_VIRTUAL, _KILL_SECONDS)
    signal.setitimer(signal.ITIMER_PROF, _TICK_SECONDS, _TICK_SECONDS)


def _stop_timers() -> None:
    global _in_main_thread
    _in_main_thread = None
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _in_main_thread is not None:
        # Python code is running and check_time() can end it, so the timer that ends the process is restarted.
        signal.setitimer(signal.ITIMER_VIRTUAL, _KILL_SECONDS)
        _in_main_thread.check_time()


def _limit_memory() -> tuple[int, int] | None:
    """Limit the address space of this process to MAX_BYTES above its current size. Returns the previous limits, which
    the caller must restore, or None if the kernel has no such limit."""
    if sys.platform != "linux":
        return None
    before = resource.getrlimit(resource.RLIMIT_AS)
    n_pages = os.pread(_statm(os.getpid()), 32, 0).partition(b" ")[0]
    most = int(n_pages) * _PAGE_BYTES + MAX_BYTES
    allowed = [limit for limit in before if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([most, *allowed]), before[1]))
    return before


@lru_cache(maxsize=1)
def _statm(pid: int) -> int:
    """A file descriptor, which is cached because opening the file takes five times as long as reading it. Because `pid`
    is the cache's key, a forked process does not use its parent's descriptor."""
    return os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)


def _refusal(subject: str, text: str, traceback: TracebackType | None) -> TemplateError:
    line = None
    while traceback is not None:
        code, names = traceback.tb_frame.f_code, traceback.tb_frame.f_globals
        # A module that Jinja generates contains a mapping from its lines to lines of the template.
        if code.co_filename == _COMPILED and "debug_info" in names:
            line = _line_of(names["debug_info"], traceback.tb_lineno)
        traceback = traceback.tb_next
    where = "" if line is None else f" (in line {line} of the template)"
    return TemplateError(
        f"{subject} {text}{where}: use a tokenizer with another chat template, or change this template"
    )


def _line_of(debug_info: str, generated: int) -> int | None:
    """The line of the template for a line of the generated module. In `debug_info`, `1=12&3=15` means that line 1 of
    the template begins at line 12 of the module, and line 3 at line 15."""
    pairs = [tuple(map(int, pair.split("="))) for pair in debug_info.split("&") if pair]
    return max((line for line, begin in pairs if begin <= generated), default=None)
