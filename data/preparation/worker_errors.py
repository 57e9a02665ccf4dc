"""Messages about worker processes that ended before their work was complete."""

import signal

from data.base.errors import DataError, setting
from data.base.workers import WorkerEnded
from data.config.dataset import DatasetConfig
from data.examples.preprocessing import is_own


def error_of_worker(error: WorkerEnded, config: DatasetConfig) -> DataError:
    """The error that explains why a worker process ended, and how to fix it."""
    if error.status == -signal.SIGKILL:
        return DataError(
            f"a worker process was killed ({error.how}), perhaps by the system because of low memory: start again with "
            f"a smaller value of {setting('prepare_workers')}; completed work is not repeated"
        )
    if error.status == -signal.SIGVTALRM:
        return DataError(
            f"a worker process was ended ({error.how}), because the chat template spent more than a minute in a single "
            "operation: use a tokenizer with another chat template, or change this template"
        )
    name = config.preprocessing_fn
    if not is_own(name):
        return DataError(f"a worker process ended before its work was complete ({error.how}): start again")
    if error.status < 0:
        return DataError(
            f"{setting('preprocessing_fn')} is {name!r}, but a process that ran this function was ended by "
            f"{error.how}: fix the crash, perhaps in an extension module, and start again; completed work is not "
            "repeated"
        )
    return DataError(
        f"{setting('preprocessing_fn')} is {name!r}, but this function ended its process: {error.how}: return an "
        "example, return None to drop the row, or raise an error"
    )
