"""How evenly the tokens of a step fall on the experts, and experts that take nearly all of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

NEARLY_ALL = 0.95
"""Of a layer's tokens: an expert that is chosen for more of them has collapsed the layer."""
STEPS = 10
"""Consecutive steps after which that is reported."""


def load_imbalance(counts_LE: np.ndarray) -> np.ndarray:
    """[L] maximum over mean of the tokens per expert; 1 where there are no tokens."""
    mean_L = counts_LE.mean(1)
    return np.divide(counts_LE.max(1), mean_L, out=np.ones_like(mean_L), where=mean_L > 0)


class ExpertWatch:
    """Notices layers in which one expert takes nearly all tokens, step after step. Its state can be JSON."""

    def __init__(self, top_k: int) -> None:
        self.top_k = top_k
        self._lengths: dict[str, int] = {}
        """Consecutive steps, by `LAYER.EXPERT`."""

    def update(self, counts_LE: np.ndarray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """(layer, expert) of the collapses that are to be reported with this step, and of those that have ended.

        counts_LE: the tokens of the step over all ranks; each counts in a layer for top_k experts.
        """
        n_experts = counts_LE.shape[1]
        tokens_L = counts_LE.sum(1) / self.top_k
        # Where most experts are chosen for every token, having nearly all tokens means nothing.
        full_LE = (counts_LE > NEARLY_ALL * tokens_L[:, None]) & (n_experts >= 2 * self.top_k)
        now = {f"{layer}.{expert}" for layer, expert in np.argwhere(full_LE).tolist()}
        ended = [_place(key) for key, length in self._lengths.items() if length >= STEPS and key not in now]
        self._lengths = {key: self._lengths.get(key, 0) + 1 for key in sorted(now)}
        return [_place(key) for key, length in self._lengths.items() if length == STEPS], ended

    def state_dict(self) -> dict[str, Any]:
        return {"lengths": dict(self._lengths)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._lengths = dict(state["lengths"])


def _place(key: str) -> tuple[int, int]:
    layer, _, expert = key.partition(".")
    return int(layer), int(expert)
