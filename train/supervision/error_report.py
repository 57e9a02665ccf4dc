"""Report the error of a command to the user, once for all ranks if possible, and return the exit code."""

import os
import time

from data.base.console import is_first, show_error
from data.base.errors import ConfigError, DataError, shown_elsewhere
from train.supervision.exit_codes import ExitCode, RunStopped

# Within this time, local rank 0 reports its own error, and the launcher then ends the other ranks.
_GRACE_SECONDS = 10.0


def report(error: Exception, *, debug: bool = False) -> int | None:
    """Show the error and return the exit code. Returns None for an unexpected error, which the caller must raise.

    Errors that the user can fix are shown by local rank 0. Another rank first waits for a grace period. If that rank is
    still running after this period, local rank 0 has not failed, and the waiting rank shows its own error. An error
    that another rank has already shown is not repeated. debug: show every error with its traceback.
    """
    rank = int(os.environ.get("RANK", "0"))
    if isinstance(error, RunStopped):
        if rank == 0:  # every rank raises this error
            show_error(error, what="stopped", debug=debug)
        return int(error.code)
    if not isinstance(error, ConfigError | DataError):
        return ExitCode.DEFECT if shown_elsewhere(error) else None
    if not shown_elsewhere(error):
        if not is_first():
            time.sleep(_GRACE_SECONDS)
        show_error(error, what=f"error: rank {rank}" if rank else "error", debug=debug)
    return ExitCode.FIXABLE
