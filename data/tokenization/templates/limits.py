"""Limits of time and memory for chat templates, which are untrusted programs.

A template runs as Python in this process, because a separate process would cost more than rendering. A signal ends long
loops, and a limit of the kernel ends large allocations. A signal cannot interrupt a single long operation in C. For the
common kind, with large integers, see sandbox.py; any other ends the process.
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
"""CPU time of a thread for one rendering, so that a busy machine does not count. Most take less than a thousandth."""
MAX_BYTES = 1 << 30
"""Memory that a rendering may add to the process: several copies of the largest row that is read (64mb)."""
_TICK_SECONDS = 0.25
_KILL_SECONDS = 60.0
"""CPU time of the process without any line of Python, after which the process is ended."""
_COMPILED = "<template>"
"""The file name that Jinja gives to a template without a file."""
_PAGE_BYTES = resource.getpagesize()


class LimitExceeded(BaseException):
    """A template exceeds a limit. Not an Exception, because some of Jinja's filters catch those."""


class TemplateLimits:
    """A context manager that raises a TemplateError, beginning with the subject, if a limit is exceeded.

    It is a class and not a generator because it is entered for every rendering and must cost only microseconds.
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
        """Raises LimitExceeded when the time is over."""
        now = time.thread_time()
        if now > self._end:
            # Freeing what the template has allocated takes time as well, and must not be interrupted.
            self._end = now + MAX_SECONDS
            raise LimitExceeded(f"takes more than {MAX_SECONDS:g} seconds for a conversation")

    def _on_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        """A trace function for threads other than the main thread, which alone runs signal handlers."""
        self.check_time()
        return self._on_line


_in_main_thread: TemplateLimits | None = None
_handler_is_set = False


def _start_timers(limits: TemplateLimits) -> None:
    global _in_main_thread, _handler_is_set
    if not _handler_is_set:
        # The handler stays installed: a pending signal after the timers stop would otherwise end the process.
        signal.signal(signal.SIGPROF, _on_signal)
        # SIGVTALRM ends the process, after printing the stack. stderr may not be a file.
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
        # Python code is running, so check_time() can end it, and the process need not be ended.
        signal.setitimer(signal.ITIMER_VIRTUAL, _KILL_SECONDS)
        _in_main_thread.check_time()


def _limit_memory() -> tuple[int, int] | None:
    """Limit the address space of this process to MAX_BYTES above its current size. Returns the previous limits, which
    the caller must restore; None if the kernel has no such limit."""
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
    """A cached file descriptor, because opening takes five times as long as reading. `pid` keeps a forked process from
    using its parent's."""
    return os.open(f"/proc/{pid}/statm", os.O_RDONLY | os.O_CLOEXEC)


def _refusal(subject: str, text: str, traceback: TracebackType | None) -> TemplateError:
    line = None
    while traceback is not None:
        code, names = traceback.tb_frame.f_code, traceback.tb_frame.f_globals
        # Modules generated by Jinja contain a mapping from their lines to lines of the template.
        if code.co_filename == _COMPILED and "debug_info" in names:
            line = _line_of(names["debug_info"], traceback.tb_lineno)
        traceback = traceback.tb_next
    where = "" if line is None else f" (in its line {line})"
    return TemplateError(f"{subject} {text}{where}: use a tokenizer with another chat template, or change this one")


def _line_of(debug_info: str, generated: int) -> int | None:
    """`1=12&3=15`: line 1 of the template begins at line 12 of the generated module."""
    pairs = [tuple(map(int, pair.split("="))) for pair in debug_info.split("&") if pair]
    return max((line for line, begin in pairs if begin <= generated), default=None)
