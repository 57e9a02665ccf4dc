"""Sets and logs the learning rate of every batch."""

from composer.core import Callback, State
from composer.loggers import Logger
from composer.optim import ComposerScheduler

from data.mixing.row_plan import RowPlan


class LearningRate(Callback):
    """Sets the learning rate of batch n (counted from 0) to the product of the initial learning rate, schedule(n) and
    the lr_scale of the stage. transformers also uses schedule(n) for batch n.

    This callback replaces Trainer(schedulers=...): Composer 0.32.1 steps a scheduler after the optimizer and before it
    increments the batch count, so batch n would be trained with schedule(n - 1), and the first two batches with
    schedule(0). The rate that is logged at the end of a batch is the rate that was used in this batch. The rate depends
    only on the batch number and on the groups' `initial_lr`, so it is not stored in checkpoints.

    Logs `lr`, the rate of the first parameter group.
    """

    def __init__(self, schedule: ComposerScheduler, plan: RowPlan) -> None:
        self.schedule, self.plan = schedule, plan

    def batch_start(self, state: State, logger: Logger) -> None:
        factor = self.schedule(state) * self.plan.lr_scale(state.timestamp.batch.value)
        (optimizer,) = state.optimizers
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def batch_end(self, state: State, logger: Logger) -> None:
        (optimizer,) = state.optimizers
        logger.log_metrics({"lr": optimizer.param_groups[0]["lr"]})
