"""Experts of which something has held for many consecutive steps: having no tokens, or nearly all."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Place = tuple[int, int]
"""Layer and expert."""
_MOST_NAMED = 4
"""Places of which each is named in a message; of more, layers and how many."""
_MOST_LAYERS = 6


class Streaks:
    """Which experts a condition has held for, step after step. Its state can be JSON.

    Beginnings are reported at most once in `steps` steps, and so are ends; what happened in between comes with the next
    report. So a run in which many experts change often still has few of them.
    """

    def __init__(self, steps: int) -> None:
        """steps: consecutive ones after which an expert is reported."""
        self.steps = steps
        self._lengths: dict[Place, int] = {}
        self._reported: set[Place] = set()
        self._quiet = [0, 0]
        """Steps for which no beginning, and no end, is reported."""

    def update(self, holds_LE: np.ndarray) -> tuple[list[Place], list[Place]]:
        """The experts to report with this step: for which it has held long enough, and no longer holds."""
        now = {(layer, expert) for layer, expert in np.argwhere(holds_LE).tolist()}
        self._lengths = {place: self._lengths.get(place, 0) + 1 for place in sorted(now)}
        long = {place for place, length in self._lengths.items() if length >= self.steps}
        self._quiet = [max(left - 1, 0) for left in self._quiet]
        begun, ended = (self._due(0, long - self._reported), self._due(1, self._reported - now))
        self._reported = self._reported.union(begun).difference(ended)
        return begun, ended

    def _due(self, which: int, places: set[Place]) -> list[Place]:
        if not places or self._quiet[which]:
            return []
        self._quiet[which] = self.steps
        return sorted(places)

    def state_dict(self) -> dict[str, Any]:
        return {
            "lengths": [[*place, length] for place, length in self._lengths.items()],
            "reported": sorted(self._reported),
            "quiet": list(self._quiet),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._lengths = {(layer, expert): length for layer, expert, length in state["lengths"]}
        self._reported = {(layer, expert) for layer, expert in state["reported"]}
        self._quiet = list(state["quiet"])


def named(places: Sequence[Place]) -> str:
    """The experts in a few words, however many they are."""
    if len(places) <= _MOST_NAMED:
        return ", ".join(f"expert {expert} of layer {layer}" for layer, expert in places)
    counts: dict[int, int] = {}
    for layer, _ in places:
        counts[layer] = counts.get(layer, 0) + 1
    first = [f"{count} of layer {layer}" for layer, count in list(counts.items())[:_MOST_LAYERS]]
    rest = sum(list(counts.values())[_MOST_LAYERS:])
    more = [f"{rest} of {len(counts) - _MOST_LAYERS} other layers"] if rest else []
    return f"{len(places)} experts: {', '.join([*first, *more])}"
