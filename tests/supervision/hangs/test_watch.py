"""Ranks that hang, are killed or raise: all end, and the user reads once which one it was."""

import os
import signal
import time
from pathlib import Path

import pytest
from composer.core import Callback, State
from composer.loggers import Logger

from data.base.errors import ConfigError
from tests.helpers.ranks import RankEnd, ends_of_ranks
from tests.helpers.toy_run import write_toy_run

STEP_3 = ["deadlines.step=3", "deadlines.setup=60", "deadlines.multiple=null", "eval_loader=null"]
QUICK = ["max_duration=6ba", "global_train_batch_size=4", "device_train_microbatch_size=2"]


class Fault(Callback):
    """Does something on one rank after a batch."""

    def __init__(self, rank: int, what: str, event: str) -> None:
        self.here = int(os.environ["RANK"]) == rank
        self.what = what
        setattr(self, event, self.act)

    def act(self, state: State, logger: Logger) -> None:
        if not self.here or state.timestamp.batch.value != 3:
            return
        if self.what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.what == "sleep":
            time.sleep(1000)
        elif self.what == "config error":
            raise ConfigError("is 1, but it must be 2", key="some_key")
        else:
            raise RuntimeError("a defect of this software")


def run_with_fault(config: str, overrides: list[str], rank: int, what: str, event: str = "before_forward") -> int:
    from train import main
    from train.run import fit

    real = fit.fit
    fit.fit = lambda *args, **kwargs: real(*args, **kwargs, callbacks=[Fault(rank, what, event)])
    return main.main([config, *overrides])


def run(
    folder: Path, rank: int, what: str, *overrides: str, event: str = "before_forward", ranks: int = 2
) -> list[RankEnd]:
    config = write_toy_run(folder, 100)
    return ends_of_ranks(run_with_fault, ranks, config, [*QUICK, *STEP_3, *overrides], rank, what, event, timeout=90)


def errors(ends: list[RankEnd]) -> list[str]:
    return [line for end in ends for line in end.output.splitlines() if line.startswith("error: ")]


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("rank", "what"),
    [
        (1, "stop"),
        (0, "stop"),
        (1, "sleep"),
        (0, "sleep"),
        (1, "kill"),
        (0, "kill"),
        (1, "config error"),
        (1, "defect"),
        (0, "defect"),
        (0, "config error"),
    ],
)
def test_x(rank: int, what: str, tmp_path: Path) -> None:
    ends = run(tmp_path, rank, what)
    for end in ends:
        print(end.code, end.seconds)
        print(end.output)
    for path in sorted((tmp_path / "toy").rglob("stacks/*")):
        print(path, path.stat().st_size)
    assert 0
