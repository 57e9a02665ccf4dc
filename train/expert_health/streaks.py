"""Finds experts for which a condition has held in many consecutive steps, such as getting no tokens, or nearly all
tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Place = tuple[int, int]
"""The number of a layer, and the number of an expert in this layer."""
_MOST_NAMED = 4
"""A message lists up to this number of experts. If there are more, the message contains only their number per layer."""
_MOST_LAYERS = 6


class Streaks:
    """Tracks, step by step, for which experts a condition has held. Its state is JSON-serializable.

    A streak is a number of consecutive steps in which the condition held. Beginnings of streaks are reported at most
    once in `steps` steps, and so are ends of streaks. Changes between two reports are included in the next report. This
    limits the number of reports if many experts change often.
    """

    def __init__(self, steps: int, shape_LE: tuple[int, int]) -> None:
        """steps: number of consecutive steps after which an expert is reported. shape_LE: numbers of layers and
        experts."""
        self.steps = steps
        self._lengths_LE = np.zeros(shape_LE, dtype=np.int64)
        self._reported_LE = np.zeros(shape_LE, dtype=bool)
        self._quiet = [0, 0]
        """The number of steps until beginnings of streaks may be reported again, and the number of steps until ends of
        streaks may be reported again."""

    def update(self, holds_LE: np.ndarray) -> tuple[list[Place], list[Place]]:
        """Record a step, and return the experts to report: those whose streak is now long enough, and those whose
        streak has ended."""
        self._lengths_LE = np.where(holds_LE, self._lengths_LE + 1, 0)
        self._quiet = [max(left - 1, 0) for left in self._quiet]
        begun_LE = self._due(0, (self._lengths_LE >= self.steps) & ~self._reported_LE)
        ended_LE = self._due(1, self._reported_LE & ~holds_LE)
        self._reported_LE = (self._reported_LE | begun_LE) & ~ended_LE
        return _places(begun_LE), _places(ended_LE)

    def _due(self, which: int, found_LE: np.ndarray) -> np.ndarray:
        if self._quiet[which] or not found_LE.any():
            return np.zeros_like(found_LE)
        self._quiet[which] = self.steps
        return found_LE

    def state_dict(self) -> dict[str, Any]:
        return {
            "lengths": self._lengths_LE.tolist(),
            "reported": self._reported_LE.tolist(),
            "quiet": list(self._quiet),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._lengths_LE = np.array(state["lengths"])
        self._reported_LE = np.array(state["reported"])
        self._quiet = list(state["quiet"])


def _places(chosen_LE: np.ndarray) -> list[Place]:
    return [(layer, expert) for layer, expert in np.argwhere(chosen_LE).tolist()]


def named(places: Sequence[Place]) -> str:
    """Return a text that lists the experts or, if there are too many to list, their number in each layer."""
    if len(places) <= _MOST_NAMED:
        return ", ".join(f"expert {expert} of layer {layer}" for layer, expert in places)
    counts: dict[int, int] = {}
    for layer, _ in places:
        counts[layer] = counts.get(layer, 0) + 1
    first = [f"{count} of layer {layer}" for layer, count in list(counts.items())[:_MOST_LAYERS]]
    rest = sum(list(counts.values())[_MOST_LAYERS:])
    more = [f"{rest} of {len(counts) - _MOST_LAYERS} other layers"] if rest else []
    return f"{len(places)} experts: {', '.join([*first, *more])}"
