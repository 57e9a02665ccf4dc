"""Measures the experts at regular intervals, and reports experts that get no tokens, or nearly all tokens, in many
consecutive steps."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from composer.core import State
from composer.loggers import Logger

from data.base.durations import Clock
from train.config.supervision import ExpertsConfig
from train.expert_health.probe import Probe
from train.expert_health.routing import RoutingSums, by_layer, gradient_norms, layer_metrics, load_imbalance
from train.expert_health.streaks import Place, Streaks, named
from train.models.dbrx import DbrxForCausalLM
from train.supervision.events import Events

_MOST_PLACES = 64
"""Maximum number of experts that an event lists."""


class ExpertHealth:
    """Tracks the experts of a run from step to step. Its state is JSON-serializable."""

    def __init__(self, config: ExpertsConfig, clock: Clock, model: DbrxForCausalLM, events: Events) -> None:
        self._config, self._model, self._events = config, model, events
        self._every = clock.batches(config.interval) if config.interval is not None else None
        self._probe = Probe(config.probe_tokens) if config.probe_tokens else None
        shape_LE = (model.config.n_layers, model.config.ffn_config.moe_num_experts)
        self._dead = Streaks(config.dead_steps, shape_LE)
        self._overloaded = Streaks(config.max_share_steps, shape_LE)

    def is_due(self, state: State) -> bool:
        """Whether this step is measured. The first step of the run, the last step of each interval, and the last step
        of the run are measured. Must be called before state.timestamp includes the step."""
        assert state.max_duration is not None
        trained = state.timestamp.batch.value + 1
        return self._every is not None and (trained % self._every == 0 or trained in (1, state.max_duration.value))

    def log_step(self, logger: Logger, sums: RoutingSums) -> None:
        imbalance, dead = load_imbalance(sums.counts_LE).max(), (sums.counts_LE == 0).sum()
        logger.log_metrics({"experts/load_imbalance": float(imbalance), "experts/dead": float(dead)})

    def measure(
        self, state: State, logger: Logger, sums: RoutingSums, names: Iterable[str], squares_P: Iterable[float]
    ) -> None:
        """Log the metrics of each layer. Every rank must call this with the same values.

        names: names of the trained parameters. squares_P: squared gradient norm of each of these parameters.
        """
        metrics = layer_metrics(sums) | gradient_norms(names, squares_P)
        if self._probe is not None and (unchanged_L := self._probe.measure(state, self._model)) is not None:
            metrics |= by_layer({"unchanged_choices": unchanged_L})
        logger.log_metrics(metrics)

    def report(self, batch: int, logger: Logger, sums: RoutingSums) -> None:
        """Report the events of a step. batch: number of batches before this step."""
        config, dead_LE, too_many_LE = self._config, sums.counts_LE == 0, self._has_too_many(sums)
        share = f"more than {100 * config.max_share:.4g}% of the layer's tokens"
        no_tokens = f"no tokens in {config.dead_steps} consecutive steps"
        too_many = f"{share} in {config.max_share_steps} consecutive steps"
        for kind, streaks, holds_LE, message, end_message in (
            ("expert_dead", self._dead, dead_LE, no_tokens, "tokens again"),
            ("expert_collapse", self._overloaded, too_many_LE, too_many, f"no longer {share}"),
        ):
            begun, ended = streaks.update(holds_LE)
            self._report(kind, batch, message, begun, logger)
            self._report(f"{kind}_end", batch, end_message, ended, logger)

    def _has_too_many(self, sums: RoutingSums) -> np.ndarray:
        n_experts = sums.counts_LE.shape[1]
        # If each token selects more than half of the experts, it is normal for an expert to get nearly all tokens.
        is_meaningful = n_experts >= 2 * sums.top_k
        return (sums.counts_LE > self._config.max_share * sums.tokens_L[:, None]) & is_meaningful

    def _report(self, kind: str, batch: int, what: str, places: list[Place], logger: Logger) -> None:
        if places:
            text, first = f"batch {batch}: {what} for {named(places)}", places[:_MOST_PLACES]
            self._events.report(kind, batch, text, logger=logger, experts=len(places), places=first)

    def state_dict(self) -> dict[str, Any]:
        return {
            "dead": self._dead.state_dict(),
            "overloaded": self._overloaded.state_dict(),
            "probe": self._probe.state_dict() if self._probe is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state. Parts of the state that are missing in a checkpoint of an earlier version are left
        unchanged."""
        for name, streaks in (("dead", self._dead), ("overloaded", self._overloaded)):
            if name in state:
                streaks.load_state_dict(state[name])
        if self._probe is not None and state.get("probe") is not None:
            self._probe.load_state_dict(state["probe"])
