"""How a run ends that is not over, and the exit codes of the command line."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Schedulers can act on them: see docs/training.md."""

    DONE = 0
    DEFECT = 1
    """An error of this software, with its traceback."""
    FIXABLE = 2
    """A configuration error or a data error."""
    UNSTABLE = 3
    """The loss or a gradient was not finite, or spikes of the loss did not end."""
    HUNG = 4
    """A deadline has passed, or a rank was lost. When one raises, all ranks have its code."""
    RESUMABLE = 75
    """Saved before a signal or max_wall_time: the same command with autoresume=true resumes. EX_TEMPFAIL of
    sysexits.h."""


class RunStopped(Exception):
    """Ends a run that is not over, on every rank with the same code. The text is for the user."""

    def __init__(self, code: int, text: str) -> None:
        """code: an ExitCode, or 128 + n after signal n where nothing is saved."""
        super().__init__(text)
        self.code = code

    def __reduce__(self) -> tuple[type["RunStopped"], tuple[int, str]]:
        return RunStopped, (self.code, str(self))
