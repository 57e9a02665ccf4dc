"""Console output of real runs, with and without a terminal, and at their end."""

import io
import os
import re
import signal
import threading
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pytest

from data.base.durations import Clock
from tests.helpers.ranks import run_ranks
from tests.helpers.small_config import load
from tests.helpers.toy_run import write_toy_run
from train.console.run_console import log_interval

CLOCK = Clock(tokens_per_batch=512, rows_per_batch=8, rows_per_epoch=80, max_batches=5000)


@pytest.mark.parametrize(
    ("overrides", "interval"),
    [
        (["progress_bar=false"], None),
        (["progress_bar=false", "log_to_console=true"], 5),
        (["progress_bar=false", "log_to_console=true", "console_log_interval=7ba"], 7),
        (["progress_bar=true", "console_log_interval=1ep"], 10),
        (["progress_bar=true", "log_to_console=composer"], None),
    ],
)
def test_lines_without_a_terminal(tmp_path: Path, overrides: list[str], interval: int | None) -> None:
    with redirect_stdout(io.StringIO()):
        assert log_interval(load(tmp_path, *overrides), CLOCK) == interval


def shown(path: str, overrides: list[str], number: int | None, *, on_terminal: bool) -> str:
    """Return the output of a run, which receives the signal in its third step if one is given."""
    from composer.core import Callback, State
    from composer.loggers import Logger

    from train.config.load import read_config
    from train.run.fit import fit
    from train.supervision.exit_codes import RunStopped
    from train.supervision.signals import StopSignals

    class InStep(Callback):
        def after_forward(self, state: State, logger: Logger) -> None:
            if number is not None and state.timestamp.batch.value == 2:
                os.kill(os.getpid(), number)

    os.environ |= {"TERM": "xterm", "COLUMNS": "100"}
    reader, writer = os.openpty() if on_terminal else os.pipe()
    found: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # the terminal is closed
            while text := os.read(reader, 1 << 16):
                found.append(text)

    thread = threading.Thread(target=read)
    thread.start()
    signals = StopSignals()
    signals.install()
    with os.fdopen(writer, "w") as stream, redirect_stdout(stream):
        with suppress(RunStopped):
            fit(read_config(path, overrides), callbacks=[InStep()], signals=signals, command="resume it")
        stream.flush()
    signals.uninstall()
    thread.join(10)
    return b"".join(found).decode()


OVERRIDES = ["max_duration=4ba", "eval_interval=2ba", "save_interval=2ba", "progress_bar=true"]


@pytest.mark.ranks
@pytest.mark.timeout(100)
def test_a_file_gets_lines_without_control_codes(tmp_path: Path) -> None:
    (text,) = run_ranks(lines_of_a_run, 1, write_toy_run(tmp_path))
    assert not re.search(r"[\x1b\r]", text)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines if re.match(r" *\d+/4 ", line)] == ["1/4", "2/4", "3/4", "4/4"]
    assert sum("evaluation: loss" in line for line in lines) == 2
    assert f"batch 2: saved {tmp_path}/toy/ep0-ba2 (" in text
    end = lines[next(number for number, line in enumerate(lines) if line.startswith("finished")) :]
    assert [line.split()[0] for line in end if not line.startswith(" ")] == [
        *("finished", "training", "evaluation", "checkpoint", "next")
    ]
    assert "python scripts/convert_checkpoint_to_hf.py" in end[4]


def lines_of_a_run(path: str) -> str:
    return shown(path, OVERRIDES, None, on_terminal=False)


@pytest.mark.ranks
@pytest.mark.timeout(100)
def test_a_terminal_has_a_bar_and_the_result_after_ctrl_c(tmp_path: Path) -> None:
    (text,) = run_ranks(stopped_on_a_terminal, 1, write_toy_run(tmp_path))
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    bars = [part for part in re.split(r"[\r\n]+", plain) if re.search(r"\d/4  loss \d\.\d{4}", part)]
    assert bars
    last = plain.splitlines()[-3:]
    assert [line.split()[0] for line in last] == ["stopped", "training", "evaluation"]
    assert "at batch 3 of 4" in last[0]


def stopped_on_a_terminal(path: str) -> str:
    return shown(path, OVERRIDES, signal.SIGINT, on_terminal=True)
