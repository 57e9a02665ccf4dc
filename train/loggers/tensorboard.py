"""Logs metrics to TensorBoard event files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composer.core import State
from composer.loggers import Logger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from train.config.redaction import masked_yaml
from train.config.schema import TrainConfig
from train.loggers.hyperparameters import flat
from train.loggers.step_logger import StepLogger

_METRICS = dict.fromkeys(("loss/train/total", "metrics/eval/LanguageCrossEntropy"))
"""Metrics that the HParams tab shows in addition to the config."""
_FLUSH_SECONDS = 10


class Tensorboard(StepLogger):
    """Writes one event file for each start of the run. When a run resumes from a checkpoint, TensorBoard hides the
    steps after this checkpoint that are in earlier files.

    This class replaces the logger of Composer 0.32.1, which creates a writer on every rank, creates another writer for
    a nested run at every evaluation, and starts a new file at every flush.
    """

    def __init__(self, folder: Path, config: TrainConfig, first_batch: int) -> None:
        super().__init__()
        self._writer = SummaryWriter(str(folder), purge_step=first_batch + 1, max_queue=1000, flush_secs=_FLUSH_SECONDS)
        self._writer.add_text("config", f"```yaml\n{masked_yaml(config)}```", global_step=first_batch)
        # SummaryWriter.add_hparams would create a nested run.
        for summary in hparams(flat(config), _METRICS):
            self._writer._get_file_writer().add_summary(summary)

    def write(self, state: State, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=self.batch_of(state))

    def log_table(
        self, columns: list[str], rows: list[list[Any]], name: str = "Table", step: int | None = None
    ) -> None:
        # TensorBoard has no tables, so this logs Markdown text.
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)
        self._writer.add_text(name, text, global_step=step)

    def eval_end(self, state: State, logger: Logger) -> None:
        super().eval_end(state, logger)
        self._writer.flush()

    def close(self, state: State, logger: Logger) -> None:
        super().close(state, logger)
        self._writer.close()


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", "<br>")
