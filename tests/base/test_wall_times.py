import pytest

from data.base.durations import parse_wall_time


@pytest.mark.parametrize(
    ("text", "seconds"), [("3h50m", 13_800), (" 45s", 45), ("1d12h", 129_600), ("1d2h3m4s", 93_784), ("90m", 5_400)]
)
def test_a_time_is_its_parts_together(text: str, seconds: int) -> None:
    assert parse_wall_time(text) == seconds


@pytest.mark.parametrize("text", ["", "3", "h", "1m2h", "3h 50m", "-1h", "1.5h", "0h0m"])
def test_what_is_no_time_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=f"is '{text}', but"):
        parse_wall_time(text)
