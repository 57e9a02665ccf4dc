"""Lines of a key and a text."""

import shlex
import sys

import pytest

from train.console.facts import WIDTH, command_fact, count_of, fact


def test_a_long_fact_continues_below_its_text() -> None:
    lines = fact("data", " ".join(["word"] * 60)).splitlines()
    assert len(lines) > 1
    assert all(len(line) <= WIDTH for line in lines)
    assert {line.index("word") for line in lines} == {lines[0].index("word")}


def test_a_narrow_terminal_breaks_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert max(len(line) for line in fact("data", " ".join(["word"] * 60)).splitlines()) <= 80
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert max(len(line) for line in fact("data", " ".join(["word"] * 60)).splitlines()) > 80


def test_a_long_command_can_be_copied_from_its_lines() -> None:
    command = f"python scripts/x.py --composer_path /{'a' * 50} --hf_output_path /{'b' * 60}"
    text = command_fact("next", command).removeprefix("next")
    assert "\n" in text
    assert all(len(line) <= WIDTH for line in command_fact("next", command).splitlines())
    assert shlex.split(text.replace("\\\n", "")) == shlex.split(command)


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0.5, "0.5"), (912, "912"), (9999, "9,999"), (61_440, "61.4k"), (3_070_000, "3.07M"), (1.2e12, "1.20T")],
)
def test_counts_have_three_digits(number: float, shown: str) -> None:
    assert count_of(number) == shown
