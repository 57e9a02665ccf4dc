"""The time limit of each section of a run, computed from the config and from the measured durations of this run."""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from train.config.supervision import DeadlinesConfig

_SAMPLES = 101
"""Number of recent durations from which the median is computed."""
_FIRST = 3
"""Number of measured durations after which a section's median is compared with its configured deadline."""
_INSTEAD_OF_NULL = 10.0
"""Multiple of the median that is used if deadlines.multiple is null and the first measured durations already exceed
deadlines.SECTION."""


class Section(StrEnum):
    """The current activity of a rank. The values are keys of `deadlines`, except for sections without a deadline."""

    SETUP = "setup"
    STEP = "step"
    DATA = "data"
    EVALUATION = "evaluation"
    SAVE = "save"
    SEND = "send"
    """Saving a checkpoint that is also uploaded: no deadline."""
    GENERATE = "generate"
    """Generating texts during the run: no deadline."""
    UNTIMED = "untimed"
    """Exports, rollbacks, and uploads of loggers at the end of the run: no deadline."""


_WITHOUT_DEADLINE = (Section.SEND, Section.GENERATE, Section.UNTIMED)


@dataclass(frozen=True, kw_only=True)
class Deadline:
    seconds: float
    source: str
    """A text for messages that explains how the deadline was computed."""


class Deadlines:
    """The deadlines of one rank. Only one thread may call `add`."""

    def __init__(self, config: DeadlinesConfig) -> None:
        self._config = config
        self._samples: dict[Section, deque[float]] = {
            section: deque(maxlen=_SAMPLES) for section in Section if section not in (Section.SETUP, *_WITHOUT_DEADLINE)
        }
        self._medians: dict[Section, float] = {}
        self._exceeded: set[Section] = set()

    def of(self, section: Section) -> Deadline | None:
        """Return the section's current deadline, or None if the section has no deadline.

        The first step may compile code, and the first batch of training or of an evaluation may start workers. A
        section that has not been measured yet therefore has the deadline of the set-up, if this deadline is longer.
        """
        floor = self._floor(section)
        if floor is None:
            return None
        found = Deadline(seconds=floor, source=f"deadlines.{section}")
        mid = self._medians.get(section)
        if mid is None:
            if section in (Section.STEP, Section.DATA, Section.EVALUATION):
                setup = self._floor(Section.SETUP)
                if setup is None:
                    return None
                if setup > floor:
                    return Deadline(seconds=setup, source="deadlines.setup, because no duration was measured yet")
            return found
        multiple = self._multiple(section)
        if multiple is not None and multiple * mid > floor:
            return Deadline(
                seconds=multiple * mid, source=f"{multiple:g} times the median of {mid:.3g} s, see deadlines.multiple"
            )
        return found

    def add(self, section: Section, seconds: float) -> str | None:
        """Add a measured duration. Returns a message, once per section, if the first measured durations already exceed
        the configured deadline."""
        samples = self._samples.get(section)
        if samples is None:
            return None
        samples.append(seconds)
        self._medians[section] = mid = median(samples)
        floor = self._floor(section)
        if len(samples) != _FIRST or floor is None or mid <= floor or section in self._exceeded:
            return None
        self._exceeded.add(section)
        used = self.of(section)
        assert used is not None
        return (
            f"deadlines.{section} is {floor:g} s, but the median of the first {_FIRST} durations is {mid:.3g} s: the "
            f"deadline is {used.seconds:.3g} s instead ({used.source})"
        )

    def _floor(self, section: Section) -> float | None:
        return None if section in _WITHOUT_DEADLINE else getattr(self._config, section.value)

    def _multiple(self, section: Section) -> float | None:
        multiple, floor, mid = self._config.multiple, self._floor(section), self._medians.get(section)
        exceeded = floor is not None and mid is not None and (section in self._exceeded or mid > floor)
        if not exceeded:
            return multiple
        # Normal durations must not exceed the deadline, or every run would be ended.
        return multiple if multiple is not None and multiple > 1 else _INSTEAD_OF_NULL
