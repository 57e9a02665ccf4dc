"""Sets and logs the learning rate of every batch."""

from composer.core import Callback, State
from composer.loggers import Logger
from composer.optim import ComposerScheduler

from data.mixing.row_plan import RowPlan


class LearningRate(Callback):
    """Batch n, counted from 0, is trained with schedule(n) times the lr_scale of its stage, as in transformers.

    It takes the place of Trainer(schedulers=...): Composer 0.32.1 steps a scheduler after the optimizer and before its
    clock counts the batch, so that batch n would be trained with schedule(n - 1), and the first two both with
    schedule(0). What is logged at a batch's end is the rate that it was trained with. It depends on the batch and on
    the groups' `initial_lr` alone, so that no checkpoint has to bring it back.

    Logs `lr`: that of the first parameter group.
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
