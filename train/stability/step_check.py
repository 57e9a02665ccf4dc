"""Checks the loss and the gradients of every step before the optimizer step, and clips the gradients."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.core import Callback, State
from composer.loggers import Logger

from data.base.durations import Clock
from data.mixing.row_plan import RowPlan
from train.config.schema import TrainConfig
from train.distributed.clipping import clip_gradients, drop_gradients
from train.expert_health.health import ExpertHealth
from train.models.dbrx import DbrxForCausalLM
from train.models.recompute import named_parameters
from train.stability.measurement import StepMeasurement, StepValues
from train.stability.nonfinite import NonFiniteSteps, Saver
from train.stability.spike_actions import SpikeActions
from train.supervision.events import Events


class StepCheck(Callback):
    """Skips steps whose loss or gradients are not finite and, depending on on_spike, steps at which the loss has a
    spike. Also measures the experts, and reports experts that receive no tokens or nearly all tokens. Replaces
    Composer's GradientClipping.

    One collective reduces loss, gradient norm and expert counts over the ranks, so all ranks make the same decisions.
    Logs in every step:

    - `l2_norm/grad/global`: the norm of all gradients before clipping;
    - `experts/load_imbalance`: maximum over mean of the tokens per expert, in the layer with the largest imbalance;
    - `experts/dead`: number of experts that received no tokens, over all layers;

    and, at an interval, the values that train/expert_health measures for each layer.

    This callback runs after callbacks that change gradients, and before callbacks that save checkpoints.
    """

    def __init__(
        self,
        config: TrainConfig,
        plan: RowPlan,
        model: DbrxForCausalLM,
        events: Events,
        *,
        clock: Clock,
        folder: Path | None,
        saver: Saver | None,
    ) -> None:
        """model: the model whose trainable parameters are checked. folder: the save folder."""
        self._plan, self._model, self._events = plan, model, events
        self._clipping = config.algorithms.gradient_clipping
        self._params = [(name, param) for name, param in named_parameters(model) if param.requires_grad]
        self._measurement = StepMeasurement()
        self._nonfinite = NonFiniteSteps(config, plan, events, folder=folder, saver=saver)
        self._spikes = SpikeActions(config, events, saver)
        self._top_k = config.model.ffn_config.moe_top_k
        self._experts = ExpertHealth(config.experts, clock, model, events)
        self._random: dict[str, Any] = {}

    def batch_start(self, state: State, logger: Logger) -> None:
        self._random = random_state()
        self._measurement.begin(state.batch["input_ids"].shape[0])
        batch = state.timestamp.batch.value
        self._spikes.enter(batch, [len(self._plan.segments), self._plan.stage(batch)], logger)

    def after_loss(self, state: State, logger: Logger) -> None:
        self._measurement.add(state)

    def after_backward(self, state: State, logger: Logger) -> None:
        # Composer keeps the outputs and the loss until the end of the next forward pass. These tensors would keep the
        # autograd graph in memory. The graph contains the input of every block, even with activation checkpointing.
        assert isinstance(state.loss, dict)
        state.outputs = torch.Tensor()
        state.loss = {name: loss.detach() for name, loss in state.loss.items()}

    def after_train_batch(self, state: State, logger: Logger) -> None:
        params = [param for _, param in self._params]
        values = self._measurement.reduce(params, self._top_k)
        logger.log_metrics({"l2_norm/grad/global": values.gradient_norm})
        self._experts.log_step(logger, values.routing)
        if self._is_skipped(state, logger, values):
            drop_gradients(params)
            # train/lineage/history.py reads this line.
            self._events.note(state.timestamp.batch.value, skipped=True)
        elif self._clipping is not None:
            clip_gradients(params, values.gradient_norm, self._clipping)
        self._experts.report(state.timestamp.batch.value, logger, values.routing)
        if self._experts.is_due(state):
            names = [name for name, _ in self._params]
            self._experts.measure(state, logger, values.routing, names, values.squares_P)

    def _is_skipped(self, state: State, logger: Logger, values: StepValues) -> bool:
        if not values.is_finite:
            self._nonfinite.handle(
                state,
                logger,
                loss=self._measurement.loss,
                params=self._params,
                batch=state.batch,
                random=self._random,
            )
            return True
        self._nonfinite.length = 0
        return self._spikes.handle(state, values.loss, logger, self._model)

    def state_dict(self) -> dict[str, Any]:
        return {
            "nonfinite": self._nonfinite.length,
            "spikes": self._spikes.state_dict(),
            "experts": self._experts.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._nonfinite.length = state["nonfinite"]
        self._spikes.load_state_dict(state["spikes"])
        self._experts.load_state_dict(state["experts"])


def random_state() -> dict[str, Any]:
    """Return this rank's random state in the format of composer.utils.reproducibility, but without a collective."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state
