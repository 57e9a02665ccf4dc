"""Wait for background saves of a run."""

from composer.core import State

from train.callbacks.checkpoint_saver import CheckpointSaver


def wait_until_saved(state: State) -> None:
    """Wait until this rank's thread has nothing left to save. This is not a collective, because other ranks may have
    been killed."""
    for each in state.callbacks:
        if isinstance(each, CheckpointSaver) and (pending := each.saver._pending) is not None:
            pending.saved.exception()
