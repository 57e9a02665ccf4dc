"""Toy runs in fp64 whose losses do not depend on how ranks and microbatches split a batch: rows, losses and weights."""

from dataclasses import dataclass, field

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from tests.helpers.expert_parallel import whole
from train.config.load import read_config
from train.models.recompute import named_parameters
from train.run.fit import fit

EXACT = [
    *["precision=fp32", "scheduler.name=constant_with_warmup"],
    *["model.resid_pdrop=0", "model.emb_pdrop=0", "model.attn_config.attn_pdrop=0"],
    "model.ffn_config={moe_jitter_eps: 0, moe_lbl_scope: batch}",
]


@dataclass
class ExactRun:
    """Results of a run by batch number."""

    rows: dict[int, Tensor] = field(default_factory=dict)
    """[rows of the global batch, 2, max_seq_len]: input_ids and labels, in order."""
    losses: dict[int, float] = field(default_factory=dict)
    """Losses in fp64. Composer logs losses only in fp32."""
    eval_metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    """The weights at the end."""


class _Recorder(Callback):
    def __init__(self) -> None:
        self.run = ExactRun()
        self._rows, self._loss = torch.empty(0), 0.0

    def before_train_batch(self, state: State, logger: Logger) -> None:
        mine = torch.stack((state.batch["input_ids"], state.batch["labels"]), dim=1)
        self._rows, self._loss = torch.cat(dist.all_gather_object(mine)), 0.0

    def after_loss(self, state: State, logger: Logger) -> None:
        assert isinstance(state.loss, dict)
        rows, of_step = state.batch["input_ids"].shape[0], state.batch["device_rows"][0]
        self._loss += float(state.loss["total"].detach() * rows / of_step)

    def batch_end(self, state: State, logger: Logger) -> None:
        loss, batch = torch.tensor(self._loss, dtype=torch.float64), state.timestamp.batch.value
        dist.all_reduce(loss)
        self.run.rows[batch], self.run.losses[batch] = self._rows, loss.item() / dist.get_world_size()

    def eval_end(self, state: State, logger: Logger) -> None:
        metrics = {name: float(value) for name, value in state.eval_metric_values.items()}
        self.run.eval_metrics[state.timestamp.batch.value] = metrics

    def fit_end(self, state: State, logger: Logger) -> None:
        self.run.weights = {name.removeprefix("module."): whole(param) for name, param in named_parameters(state.model)}


def exact_runs(path: str, overrides: list[list[str]]) -> list[ExactRun]:
    """Run the config at path with EXACT and each list of overrides, one after the other. For run_ranks."""
    return [exact_run(path, each) for each in overrides]


def exact_run(path: str, overrides: list[str]) -> ExactRun:
    recorder = _Recorder()
    fit(read_config(path, [*EXACT, *overrides]), callbacks=[recorder], dtype=torch.float64)
    return recorder.run
