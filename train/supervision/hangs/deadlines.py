"""How long each section of a run may take: from the config and from what the sections of this run have taken."""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

from train.config.supervision import DeadlinesConfig

_SAMPLES = 101
"""Of the newest, of which the median is taken."""
_FIRST = 3
"""Samples after which a section's median is compared with its floor."""
_INSTEAD_OF_NULL = 10.0
"""Times the median, where deadlines.multiple is null and the run exceeds deadlines.SECTION from the start."""


class Section(StrEnum):
    """What a rank is doing. The values are keys of `deadlines`, but for those without a deadline."""

    SETUP = "setup"
    STEP = "step"
    DATA = "data"
    EVALUATION = "evaluation"
    SAVE = "save"
    SEND = "send"
    """Saving a checkpoint that goes to an object store as well: without a deadline."""
    GENERATE = "generate"
    """Texts during the run: without a deadline."""
    UNTIMED = "untimed"
    """Without a deadline: exports, rollbacks, what loggers upload at the end."""


_WITHOUT_DEADLINE = (Section.SEND, Section.GENERATE, Section.UNTIMED)


@dataclass(frozen=True, kw_only=True)
class Deadline:
    seconds: float
    source: str
    """How it was computed, for people to read."""


class Deadlines:
    """The deadlines of one rank. Samples are added by one thread."""

    def __init__(self, config: DeadlinesConfig) -> None:
        self._config = config
        self._samples: dict[Section, deque[float]] = {
            section: deque(maxlen=_SAMPLES) for section in Section if section not in (Section.SETUP, *_WITHOUT_DEADLINE)
        }
        self._medians: dict[Section, float] = {}
        self._exceeded: set[Section] = set()

    def of(self, section: Section) -> Deadline | None:
        """The deadline as of now; None where there is none.

        Without a sample a step, its batch and a batch of an evaluation have set-up's, if it is longer: they may
        compile, and start workers.
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
                    return Deadline(seconds=setup, source="deadlines.setup, for the first")
            return found
        multiple = self._multiple(section)
        if multiple is not None and multiple * mid > floor:
            return Deadline(
                seconds=multiple * mid, source=f"{multiple:g} times the median of {mid:.3g} s: deadlines.multiple"
            )
        return found

    def add(self, section: Section, seconds: float) -> str | None:
        """Adds what a section has taken. Returns, once per section, that the run exceeds its floor from the start."""
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
            f"deadlines.{section} is {floor:g} s, but the first {_FIRST} took {mid:.3g} s (median): the deadline is "
            f"{used.seconds:.3g} s instead ({used.source})"
        )

    def _floor(self, section: Section) -> float | None:
        return None if section in _WITHOUT_DEADLINE else getattr(self._config, section.value)

    def _multiple(self, section: Section) -> float | None:
        multiple, floor, mid = self._config.multiple, self._floor(section), self._medians.get(section)
        exceeded = floor is not None and mid is not None and (section in self._exceeded or mid > floor)
        if not exceeded:
            return multiple
        # A deadline that what is normal exceeds would end every run.
        return multiple if multiple is not None and multiple > 1 else _INSTEAD_OF_NULL
