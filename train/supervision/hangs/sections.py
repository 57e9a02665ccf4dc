"""The section that a rank's main thread is in, and when it was entered. The watchdog's threads read this information.

A process has one main thread, so `within(Section.SAVE)` needs no reference to the run. `within` does nothing if no run
is watched.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from train.supervision.hangs.deadlines import Deadlines, Section


@dataclass(frozen=True, kw_only=True)
class Place:
    """The progress of a rank at one moment: its section and batch."""

    section: Section
    batch: int
    """Number of completed batches."""
    since: float
    """Start time of the section on the clock of `Sections`, moved forward by the duration of nested sections."""
    marks: int
    """Number of events and section changes so far. All ranks go through the same events and sections in the same
    order."""


class Sections:
    """The sections of the main thread. Other threads may read `place`, `age` and the deadlines."""

    def __init__(self, deadlines: Deadlines, clock: Callable[[], float], on_exceeded: Callable[[str], None]) -> None:
        """on_exceeded: called with a message if the first measured durations of a section already exceed its configured
        deadline."""
        self.deadlines, self._clock, self._on_exceeded = deadlines, clock, on_exceeded
        self.place = Place(section=Section.SETUP, batch=0, since=clock(), marks=0)
        self._outer: list[tuple[Place, float]] = []
        """The enclosing sections, outermost first, each with the time at which the section nested in it was entered."""
        self._seconds = dict.fromkeys(Section, 0.0)
        self._counted = self.place.since

    def seconds(self) -> dict[Section, float]:
        """Return the seconds spent in each section so far, without nested sections. Time spent waiting for data is a
        separate entry during a step; at other times it counts towards the enclosing section. Must be called from the
        main thread."""
        now, section = self._clock(), self.place.section
        if section is Section.DATA and self._outer and self._outer[-1][0].section is not Section.STEP:
            section = self._outer[-1][0].section
        self._seconds[section] += now - self._counted
        self._counted = now
        return dict(self._seconds)

    def age(self, place: Place) -> float:
        return self._clock() - place.since

    def mark(self) -> None:
        """Count an event that occurs on every rank."""
        self.place = replace(self.place, marks=self.place.marks + 1)

    def at_batch(self, batch: int) -> None:
        self.place = replace(self.place, batch=batch)

    def step_done(self, batch: int) -> None:
        """End a step and start the next one. The first step of the process is part of set-up."""
        assert not self._outer, "a step must not end inside a nested section"
        self.seconds()
        if self.place.section is Section.STEP:
            self._add(self.place)
        self.place = Place(section=Section.STEP, batch=batch, since=self._clock(), marks=self.place.marks + 1)

    def enter(self, section: Section) -> None:
        self.seconds()
        now = self._clock()
        self._outer.append((self.place, now))
        self.place = replace(self.place, section=section, since=now, marks=self.place.marks + 1)

    def again(self) -> None:
        """Start the next repetition of the section, such as a batch of an evaluation."""
        self._add(self.place)
        self.place = replace(self.place, since=self._clock(), marks=self.place.marks + 1)

    def leave(self, *, measured: bool = True) -> None:
        """Leave the section. measured: whether its duration affects the median from which the deadline is computed."""
        self.seconds()
        inner, (outer, entered) = self.place, self._outer.pop()
        if measured:
            self._add(inner)
        # The duration of the nested section does not count towards the enclosing section.
        self.place = replace(outer, since=outer.since + self._clock() - entered, marks=inner.marks + 1)

    def seconds_left(self) -> float:
        """Seconds until the deadline of the current section; infinite if the section has no deadline."""
        deadline = self.deadlines.of(self.place.section)
        return float("inf") if deadline is None else deadline.seconds - self.age(self.place)

    def _add(self, place: Place) -> None:
        message = self.deadlines.add(place.section, self.age(place))
        if message is not None:
            self._on_exceeded(message)


_watched: Sections | None = None
"""The sections of the run that is active in this process."""


@contextmanager
def watched_sections(sections: Sections) -> Iterator[None]:
    """A context manager in which `within` and `add_sample` use `sections`."""
    global _watched
    assert _watched is None, "only one run at a time can be watched"
    _watched = sections
    try:
        yield
    finally:
        _watched = None


@contextmanager
def within(section: Section, *, measured: bool = True) -> Iterator[None]:
    """Mark that the main thread is in this section; meanwhile the age of the enclosing section does not increase. Also
    works as a decorator. measured: whether the duration affects the median from which the deadline is computed."""
    sections = _watched
    if sections is None:
        yield
        return
    sections.enter(section)
    yield  # after an exception, the section does not change, because it shows where the run ended
    sections.leave(measured=measured)


def add_sample(section: Section, seconds: float) -> None:
    """Add the duration of a section that ran outside the main thread."""
    if _watched is not None:
        _watched.deadlines.add(section, seconds)


def seconds_so_far() -> dict[Section, float]:
    """Return Sections.seconds of the watched run; empty if no run is watched."""
    return _watched.seconds() if _watched is not None else {}


@contextmanager
def waiting_for_data() -> Iterator[Callable[[], float]]:
    """Mark that a loader waits for data (see data/loading/loader.py). Yields a function that returns the seconds until
    the deadline."""
    sections = _watched
    if sections is None:
        yield lambda: float("inf")
        return
    sections.enter(Section.DATA)
    yield sections.seconds_left
    sections.leave()
