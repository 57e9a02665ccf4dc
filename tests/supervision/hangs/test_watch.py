"""When a rank hangs, is killed or raises, all ranks end, and one message names the rank and the reason."""

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from composer.core import Callback, State
from composer.loggers import Logger

from data.base.errors import ConfigError
from tests.helpers.ranks import RankEnd, ends_of_ranks
from tests.helpers.toy_run import write_toy_run

FAULT_AT = 3
QUICK = [
    "max_duration=6ba",
    "global_train_batch_size=4",
    "device_train_microbatch_size=2",
    "deadlines={multiple: null, setup: 100, step: 2, data: 2, evaluation: 2, save: 2, heartbeat: 30}",
]


class Fault(Callback):
    """Does something at an event of one rank (None: of all ranks) after batch FAULT_AT."""

    def __init__(self, rank: int | None, what: str, event: str) -> None:
        self.here, self.what = rank in (None, int(os.environ["RANK"])), what
        setattr(self, event, self.act)

    def act(self, state: State, logger: Logger) -> None:
        if not self.here or state.timestamp.batch.value != FAULT_AT:
            return
        self.here = False
        if self.what == "sleep":
            time.sleep(1000)
        elif self.what == "config error":
            raise ConfigError("is 1, but it must be 2", key="some_key")
        elif self.what == "defect":
            raise RuntimeError("a defect of this software")
        elif self.what == "stop a worker":
            (worker,) = psutil.Process().children()
            worker.suspend()
        else:
            os.kill(os.getpid(), getattr(signal, self.what))


def run_with_fault(config: str, overrides: list[str], fault: tuple[int | None, str, str]) -> int:
    from train import main
    from train.run import fit

    real = fit.fit

    def with_fault(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs, callbacks=[Fault(*fault)])

    fit.fit = with_fault
    return main.main([config, *overrides])


def run(
    folder: Path, rank: int | None, what: str, *overrides: str, event: str = "before_forward", ranks: int = 2
) -> list[RankEnd]:
    config, fault = write_toy_run(folder, 100), (rank, what, event)
    return ends_of_ranks(run_with_fault, ranks, config, [*QUICK, "eval_loader=null", *overrides], fault, timeout=120)


def the_error(ends: list[RankEnd]) -> str:
    (line,) = [line for end in ends for line in end.output.splitlines() if line.startswith("error: ")]
    return line


def record(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "toy/record.jsonl").read_text().splitlines()]


def check_hang(folder: Path, ends: list[RankEnd], rank: int, what: str, ended_after: float = 60) -> None:
    error = the_error(ends)
    assert what in error
    assert f"the run waits for rank {rank} (host " in error
    assert f"stacks of all ranks that respond are in {folder}/toy/stacks" in error
    assert {end.code for end in ends} <= {4, -signal.SIGKILL}
    assert "Thread" in (folder / f"toy/stacks/rank{1 - rank}.txt").read_text()
    assert [line["batch"] for line in record(folder) if line.get("event") == "hung"] == [FAULT_AT]
    assert max(end.seconds for end in ends) < ended_after


@pytest.mark.ranks
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.proof)])
def test_a_stopped_rank_is_named_and_killed(rank: int, tmp_path: Path) -> None:
    ends = run(tmp_path, rank, "SIGSTOP")
    check_hang(tmp_path, ends, rank, "the step after batch 3 took longer than 2 s (deadlines.step)")
    assert "which is stopped (SIGSTOP)" in the_error(ends)
    assert [ends[rank].code, ends[1 - rank].code] == [-signal.SIGKILL, 4]


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("rank", "event", "section", "overrides"),
    [
        (1, "before_forward", "the step", []),
        pytest.param(0, "before_forward", "the step", [], marks=pytest.mark.proof),
        pytest.param(
            1,
            "eval_batch_start",
            "an evaluation",
            ["eval_loader.num_workers=0", "eval_interval=3ba", "deadlines.setup=2.5"],
            marks=pytest.mark.proof,
        ),
    ],
)
def test_a_rank_that_hangs_is_named_with_the_function_it_is_in(
    rank: int, event: str, section: str, overrides: list[str], tmp_path: Path
) -> None:
    if event == "eval_batch_start":
        overrides = [*overrides, f"eval_loader={{name: finetuning, num_workers: 0, dataset: {dataset(tmp_path)}}}"]
    ends = run(tmp_path, rank, "sleep", *overrides, event=event)
    check_hang(tmp_path, ends, rank, f"{section} after batch 3 took longer than")
    assert re.search(r"at act \(test_watch.py:\d+\)", the_error(ends))
    assert f"rank {rank}: " in (tmp_path / f"toy/stacks/rank{rank}.txt").read_text()
    assert [end.code for end in ends] == [4, 4]


def dataset(folder: Path) -> str:
    files = f"hf_kwargs: {{data_files: {folder}/eval.jsonl}}"
    return f"{{hf_name: json, {files}, max_seq_len: 128, cache_dir: {folder}/cache}}"


@pytest.mark.ranks
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.proof)])
def test_a_killed_rank_is_named_at_once(rank: int, tmp_path: Path) -> None:
    ends = run(tmp_path, rank, "SIGKILL", "deadlines.step=1000")
    assert re.match(
        rf"error: rank {rank} \(host .*, pid \d+\) no longer exists: the process was killed", the_error(ends)
    )
    assert [ends[rank].code, ends[1 - rank].code] == [-signal.SIGKILL, 4]
    assert ends[1 - rank].seconds < ends[rank].seconds + 25


@pytest.mark.ranks
@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.proof)])
@pytest.mark.parametrize(("what", "code", "text"), [("config error", 2, "some_key is 1"), ("defect", 1, "a defect of")])
def test_a_rank_that_raises_ends_the_others_with_its_message_once(
    rank: int, what: str, code: int, text: str, tmp_path: Path
) -> None:
    ends = run(tmp_path, rank, what, "deadlines.step=1000")
    assert [end.code for end in ends] == [code, code]
    output = "".join(end.output for end in ends)
    assert output.count(text) == 1 + (what == "defect" and output.count('raise RuntimeError("a defect'))
    assert output.count("Traceback") == (what == "defect")
    if rank == 1:
        assert "rank 1 failed" in ends[0].output


@pytest.mark.ranks
@pytest.mark.proof
@pytest.mark.parametrize("what", ["config error", "defect"])
def test_what_all_ranks_raise_is_reported_once(what: str, tmp_path: Path) -> None:
    ends = run(tmp_path, None, what, "deadlines.step=1000")
    assert len({end.code for end in ends}) == 1
    assert "".join(end.output for end in ends).count("\nerror: " if what == "config error" else "Traceback") == 1


@pytest.mark.ranks
@pytest.mark.proof  # tests/loading/test_workers.py has the same test on one rank
def test_a_stopped_worker_of_a_loader_ends_all_ranks(tmp_path: Path) -> None:
    ends = run(tmp_path, 1, "stop a worker", "train_loader.num_workers=1", "deadlines.step=30")
    assert re.match(
        r"error: rank 1 failed: worker 0 of 1 \(pid \d+\) of rank 1's train_loader is stopped \(SIGSTOP\) and has not "
        r"delivered batch \d+ within ",
        the_error(ends),
    )
    assert [end.code for end in ends] == [2, 2]
