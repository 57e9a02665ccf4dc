"""Exit codes of the command line, and the exception that ends a run before its last step."""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes that schedulers can act on: see docs/training.md."""

    DONE = 0
    DEFECT = 1
    """A defect of this software. It is reported with a traceback."""
    FIXABLE = 2
    """A configuration error or a data error."""
    UNSTABLE = 3
    """The loss or a gradient was not finite, or a spike of the loss did not end."""
    HUNG = 4
    """A deadline has passed, or a rank was lost. After an exception on one rank, all ranks exit with that rank's exit
    code instead."""
    RESUMABLE = 75
    """The run was saved after a signal or before max_wall_time: the same command with autoresume=true resumes it. The
    code is EX_TEMPFAIL of sysexits.h."""


class RunStopped(Exception):
    """Ends an unfinished run with the same code on every rank. The text is shown to the user."""

    def __init__(self, code: int, text: str) -> None:
        """code: an ExitCode, or 128 + n if signal n was received and nothing was saved."""
        super().__init__(text)
        self.code = code

    def __reduce__(self) -> tuple[type["RunStopped"], tuple[int, str]]:
        return RunStopped, (self.code, str(self))
