"""The saving thread pauses while training continues, and not while somebody waits for it."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from train.checkpoint.saving import pace as module
from train.checkpoint.saving.pace import Pace


def test_pauses_are_three_times_as_long_as_the_computing_time() -> None:
    pace = Pace()
    pace.begin(background=True)

    def save() -> tuple[float, float]:
        began = time.monotonic()
        while (busy := time.thread_time()) < 0.05:
            pace.rest()
        return busy, time.monotonic() - began

    with ThreadPoolExecutor(1) as pool:
        busy, seconds = pool.submit(save).result()
    assert seconds > 3 * busy  # there is no pause after the last call


@pytest.mark.parametrize("moment", ["the save begins", "it rests", "it has been waited for"])
def test_there_are_no_pauses_while_somebody_waits(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "thread_time", lambda: 1e6)  # the pause would last weeks
    pace = Pace()
    pace.begin(background=moment != "the save begins")
    if moment == "it rests":
        threading.Timer(0.1, pace.hurry).start()
    elif moment == "it has been waited for":
        pace.hurry()
    pace.rest()
