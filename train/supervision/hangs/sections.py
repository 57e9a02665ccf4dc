"""Where the main thread of a rank is, and since when: marked as it goes, read by the watchdog's threads.

A process has one main thread, so what marks a section need not be handed anything: `within(Section.SAVE)` does nothing
where no run is watched.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from train.supervision.hangs.deadlines import Deadlines, Section


@dataclass(frozen=True, kw_only=True)
class Place:
    """Of a rank at one moment."""

    section: Section
    batch: int
    """Batches that are done."""
    since: float
    """By the clock of Sections, and later by what the sections within it have taken."""
    marks: int
    """Events and changes of section so far: all ranks have the same ones in the same order."""


class Sections:
    """For the main thread; another one may read `place`, `age` and the deadlines."""

    def __init__(self, deadlines: Deadlines, clock: Callable[[], float], on_exceeded: Callable[[str], None]) -> None:
        """on_exceeded is called with what is to be reported of a floor that the run exceeds from the start."""
        self.deadlines, self._clock, self._on_exceeded = deadlines, clock, on_exceeded
        self.place = Place(section=Section.SETUP, batch=0, since=clock(), marks=0)
        self._outer: list[tuple[Place, float]] = []
        """What the present section is within, from the outside in, and when it was left for the next."""
        self._seconds = dict.fromkeys(Section, 0.0)
        self._counted = self.place.since

    def seconds(self) -> dict[Section, float]:
        """What each section has taken so far, without the sections within it. Waiting for data counts as such within a
        step, elsewhere as what it is within. For the main thread."""
        now, section = self._clock(), self.place.section
        if section is Section.DATA and self._outer and self._outer[-1][0].section is not Section.STEP:
            section = self._outer[-1][0].section
        self._seconds[section] += now - self._counted
        self._counted = now
        return dict(self._seconds)

    def age(self, place: Place) -> float:
        return self._clock() - place.since

    def mark(self) -> None:
        """Counts an event that every rank meets."""
        self.place = replace(self.place, marks=self.place.marks + 1)

    def at_batch(self, batch: int) -> None:
        self.place = replace(self.place, batch=batch)

    def step_done(self, batch: int) -> None:
        """A step has ended, which a step follows. The first one of the process is part of set-up."""
        assert not self._outer, "steps are within nothing"
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
        """One more of the same, such as a batch of an evaluation, begins."""
        self._add(self.place)
        self.place = replace(self.place, since=self._clock(), marks=self.place.marks + 1)

    def leave(self, *, measured: bool = True) -> None:
        """measured: what the section took is one sample of what it takes."""
        self.seconds()
        inner, (outer, entered) = self.place, self._outer.pop()
        if measured:
            self._add(inner)
        # Time of the inner section is not the outer one's.
        self.place = replace(outer, since=outer.since + self._clock() - entered, marks=inner.marks + 1)

    def seconds_left(self) -> float:
        """Until the deadline of the present section; infinite without one."""
        deadline = self.deadlines.of(self.place.section)
        return float("inf") if deadline is None else deadline.seconds - self.age(self.place)

    def _add(self, place: Place) -> None:
        message = self.deadlines.add(place.section, self.age(place))
        if message is not None:
            self._on_exceeded(message)


_watched: Sections | None = None
"""Of the run that this process trains."""


@contextmanager
def watched_sections(sections: Sections) -> Iterator[None]:
    """`within` marks these meanwhile."""
    global _watched
    assert _watched is None, "one run at a time"
    _watched = sections
    try:
        yield
    finally:
        _watched = None


@contextmanager
def within(section: Section, *, measured: bool = True) -> Iterator[None]:
    """The main thread is in this section, and the one around it does not age. Also decorates functions. measured: what
    it takes counts for the section's median."""
    sections = _watched
    if sections is None:
        yield
        return
    sections.enter(section)
    yield  # an exception ends the run: until then the section is where it came from
    sections.leave(measured=measured)


def took(section: Section, seconds: float) -> None:
    """Adds a sample of what a section takes that the main thread was not in."""
    if _watched is not None:
        _watched.deadlines.add(section, seconds)


def seconds_so_far() -> dict[Section, float]:
    """As Sections.seconds, of the run that is watched; empty where none is."""
    return _watched.seconds() if _watched is not None else {}


@contextmanager
def waiting_for_data() -> Iterator[Callable[[], float]]:
    """For loaders (see data/loading/loader.py): gives the seconds that are left."""
    sections = _watched
    if sections is None:
        yield lambda: float("inf")
        return
    sections.enter(Section.DATA)
    yield sections.seconds_left
    sections.leave()
