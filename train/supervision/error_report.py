"""What a command that may run on several ranks tells its user of an error, and the exit code that it ends with."""

import os
import time

from data.base.console import is_first, show_error
from data.base.errors import ConfigError, DataError, shown_elsewhere
from train.supervision.exit_codes import ExitCode, RunStopped

# Long enough for local rank 0 to tell what it has met as well; the launcher then ends the others.
_GRACE_SECONDS = 10.0


def report(error: Exception, *, debug: bool = False) -> int | None:
    """The exit code; None of a defect that this rank is to show, with its traceback. debug: shows all with theirs.

    Of what can be fixed local rank 0 tells; another does so only if it is still there after a while, having met the
    error alone; none for which another rank has told it.
    """
    rank = int(os.environ.get("RANK", "0"))
    if isinstance(error, RunStopped):
        if rank == 0:  # every rank has it
            show_error(error, what="stopped", debug=debug)
        return int(error.code)
    if not isinstance(error, ConfigError | DataError):
        return ExitCode.DEFECT if shown_elsewhere(error) else None
    if not shown_elsewhere(error):
        if not is_first():
            time.sleep(_GRACE_SECONDS)
        show_error(error, what=f"error: rank {rank}" if rank else "error", debug=debug)
    return ExitCode.FIXABLE
