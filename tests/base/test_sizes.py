"""Sizes in messages and in progress bars."""

import io

import pytest

from data.base.sizes import format_bytes, progress_bar


@pytest.mark.parametrize(
    ("n_bytes", "up", "down"),
    [
        (0, "0b", "0b"),
        (1023, "1023b", "1023b"),
        (1 << 30, "1gb", "1gb"),
        ((1 << 30) + 1, "1.01gb", "1gb"),
        ((1 << 30) - 1, "1024mb", "1023.99mb"),
        (1.5 * 2**30, "1.5gb", "1.5gb"),
        (100 << 10, "100kb", "100kb"),
        ((12_345 << 40) + (1 << 39) + 1, "12345.51tb", "12345.5tb"),
        ((1 << 60) - 1, "1048576tb", "1048575.99tb"),
    ],
)
def test_required_sizes_are_rounded_up_and_available_sizes_down(n_bytes: float, up: str, down: str) -> None:
    assert (format_bytes(n_bytes), format_bytes(n_bytes, down=True)) == (up, down)


@pytest.mark.parametrize(("unit", "shown"), [("B", "1.00G/2.00G"), ("rows", "1.07G/2.15G")])
def test_a_progress_bar_shows_bytes_as_in_messages(unit: str, shown: str) -> None:
    with progress_bar("Reading", 2 << 30, unit=unit, initial=1 << 30, file=io.StringIO()) as bar:
        assert shown in str(bar)
