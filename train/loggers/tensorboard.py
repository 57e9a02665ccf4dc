"""TensorBoard event files of rank 0."""

from composer.core import State
from composer.loggers import Logger, TensorboardLogger


class Tensorboard(TensorboardLogger):
    """Composer's, for rank 0 alone, with one event file for a start of the run, in LOG_DIR/RUN_NAME.

    Composer 0.32.1's makes a writer on every rank, and on each, at every evaluation, one more for a run inside the
    run: it calls add_hparams(run_name=...), for which torch opens the folder RUN_NAME/RUN_NAME. It also closes its
    file at every flush, to upload it, and begins another.
    """

    def eval_end(self, state: State, logger: Logger) -> None:
        self._flush(logger)

    def _flush(self, logger: Logger) -> None:
        if self.writer is not None:
            self.writer.flush()

    def close(self, state: State, logger: Logger) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None
