"""A run that is killed with `kill -9`, wherever it is, and resumed ends as one that was not, bit for bit."""

from pathlib import Path

import pytest

from tests.helpers.kill_moments import Kill
from tests.helpers.killed_run import KilledRun, write_run

pytestmark = [pytest.mark.ranks, pytest.mark.slow]


def test_whole(tmp_path):
    import time
    config = write_run(tmp_path)
    for name in ("one", "two", "three"):
        began = time.monotonic()
        run = KilledRun(config, name)
        run.start()
        print(name, time.monotonic() - began)
        if name == "one": whole = run
        print(run.defects(whole))
    began = time.monotonic()
    run = KilledRun(config, "four")
    run.start(Kill(moment="between manifest and rename", batch=5))
    print(time.monotonic() - began)
    run.start()
    print(time.monotonic() - began)
    print(run.defects(whole))
