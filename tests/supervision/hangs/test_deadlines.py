"""Deadlines from medians, nested sections, a clock that stops during suspension, and stragglers."""

from dataclasses import replace

import pytest

from train.config.supervision import DeadlinesConfig
from train.supervision.hangs.clock import LONGEST_TICK, AwakeClock
from train.supervision.hangs.deadlines import Deadlines, Section
from train.supervision.hangs.sections import Sections
from train.supervision.hangs.stragglers import SECTION_NAMES, Heartbeat, stragglers

CONFIG = DeadlinesConfig(multiple=10, setup=100, step=5, data=5, evaluation=5, save=5)


def seconds(deadlines: Deadlines, section: Section) -> float | None:
    found = deadlines.of(section)
    return None if found is None else found.seconds


def test_a_step_has_the_setup_deadline_until_one_is_measured_and_then_the_median_s() -> None:
    deadlines = Deadlines(CONFIG)
    assert seconds(deadlines, Section.STEP) == 100
    assert deadlines.add(Section.STEP, 0.1) is None
    assert seconds(deadlines, Section.STEP) == 5
    for taken in (1.0, 1.0, 90.0):
        assert deadlines.add(Section.STEP, taken) is None
    assert seconds(deadlines, Section.STEP) == 10
    assert seconds(deadlines, Section.UNTIMED) is None


@pytest.mark.parametrize(("multiple", "used"), [(3.0, 24), (None, 80), (0.5, 80)])
def test_a_deadline_that_the_first_steps_exceed_is_reported_once(multiple: float | None, used: float) -> None:
    deadlines = Deadlines(replace(CONFIG, multiple=multiple))
    messages = [deadlines.add(Section.STEP, 8.0) for _ in range(6)]
    (message,) = [message for message in messages if message is not None]
    assert message.startswith(
        f"deadlines.step is 5 s, but the median of the first 3 durations is 8 s: the deadline is {used} s"
    )
    assert seconds(deadlines, Section.STEP) == used


def test_null_sets_no_deadline() -> None:
    deadlines = Deadlines(replace(CONFIG, save=None))
    deadlines.add(Section.SAVE, 1.0)
    assert seconds(deadlines, Section.SAVE) is None


def test_nested_sections_do_not_age_a_step_and_the_first_is_not_measured() -> None:
    now = [0.0]
    sections = Sections(Deadlines(CONFIG), lambda: now[0], pytest.fail)
    now[0] = 50.0
    sections.step_done(1)
    now[0] = 51.0
    sections.enter(Section.SAVE)
    now[0] = 71.0
    sections.leave()
    now[0] = 72.0
    assert sections.age(sections.place) == 2
    sections.step_done(2)
    assert seconds(sections.deadlines, Section.STEP) == 20
    assert seconds(sections.deadlines, Section.SAVE) == 200


def test_a_clock_stops_while_its_process_is_suspended() -> None:
    now = [0.0]
    clock = AwakeClock(lambda: now[0])
    for _ in range(10):
        now[0] += 0.5
        clock.tick()
    now[0] += 1000
    clock.tick()
    assert clock() == 5 + LONGEST_TICK


def test_a_watchdog_can_name_every_section() -> None:
    assert SECTION_NAMES.keys() == {section.value for section in Section}


BEAT = Heartbeat(number=1, section="step", batch=3, marks=9, age=5, overdue=True, function="f", waits=True)


@pytest.mark.parametrize(
    ("beats", "silent", "behind"),
    [
        ([BEAT, BEAT, BEAT], [2], [2]),
        ([BEAT, replace(BEAT, marks=8), BEAT], [], [1]),
        ([BEAT, BEAT, replace(BEAT, waits=False)], [], [2]),
        ([BEAT, BEAT, BEAT], [], []),
        ([replace(BEAT, left=True), BEAT], [], [0]),
    ],
)
def test_stragglers_are_found(beats: list[Heartbeat], silent: list[int], behind: list[int]) -> None:
    assert stragglers(dict(enumerate(beats)), silent) == behind


@pytest.mark.parametrize(
    ("beat", "text"),
    [
        (BEAT, "in the same section for 5 s after batch 3: the step, at f"),
        (
            replace(BEAT, section="send", function=""),
            "in the same section for 5 s after batch 3: saving or uploading a checkpoint",
        ),
        (replace(BEAT, left=True), "has ended after batch 3"),
    ],
)
def test_a_heartbeat_names_the_section_and_its_duration(beat: Heartbeat, text: str) -> None:
    assert str(beat) == text
