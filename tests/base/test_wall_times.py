import pytest

from data.base.durations import format_seconds, parse_wall_time


@pytest.mark.parametrize(
    ("text", "seconds"), [("3h50m", 13_800), (" 45s", 45), ("1d12h", 129_600), ("1d2h3m4s", 93_784), ("90m", 5_400)]
)
def test_a_time_is_its_parts_together(text: str, seconds: int) -> None:
    assert parse_wall_time(text) == seconds


@pytest.mark.parametrize("text", ["", "3", "h", "1m2h", "3h 50m", "-1h", "1.5h", "0h0m"])
def test_an_invalid_time_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"is '{text}', but"):
        parse_wall_time(text)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.42, "0.4s"), (59.6, "1m00s"), (245, "4m05s"), (11_540, "3h12m"), (183_700, "2d03h"), (float("nan"), "?")],
)
def test_seconds_are_shown_in_two_units(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown
