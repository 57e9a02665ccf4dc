"""Small runs that are killed and restarted, compared with an uninterrupted run."""

import hashlib
import json
import os
import random
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from composer.core import Callback, State
from composer.loggers import Logger

from tests.helpers.kill_moments import LAST, MOMENTS, Kill, Trigger, kill_all
from tests.helpers.ranks import Ranks, started_ranks
from tests.helpers.toy_curriculum import write_curriculum
from train.checkpoint.save_folder import RECORD, checkpoints
from train.checkpoint.storage.manifest import STATE, read_manifest

RANKS = 2
_LIMIT = 120.0
"""Time limit of a start in seconds."""


def write_run(folder: Path) -> str:
    """Return the config of a run over a curriculum with dropout, loader workers, evaluations, and pruned
    checkpoints."""
    path = Path(write_curriculum(folder))
    config = yaml.safe_load(path.read_text())
    config |= {
        "max_duration": f"{LAST}ba",
        "eval_interval": "5ba",
        "eval_subset_num_batches": 2,
        "save_interval": "2ba",
        "save_num_checkpoints_to_keep": 2,
        "save_keep_every": 3,
    }
    config["train_loader"]["num_workers"] = 1
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return str(path)


@dataclass(frozen=True)
class Start:
    """The steps trained by one start of a run."""

    killed: bool
    first: int
    """The batch at which its checkpoint resumes; 0 without a checkpoint."""
    batches: Mapping[tuple[int, int], Mapping[str, Any]]
    """Rows and loss by (batch, rank), written by each rank after each step."""


class KilledRun:
    """All starts of a run."""

    def __init__(self, config: str, name: str) -> None:
        self.config, self.folder = config, Path(config).parent / name
        self.starts: list[Start] = []

    @property
    def position(self) -> int:
        """Batch of the newest complete checkpoint, even if it has not been renamed yet."""
        found = self.folder.glob("*/manifest.json")
        names = [re.fullmatch(r"(?:\.part-)?ep0-ba(\d+)", path.parent.name) for path in found]
        return max((int(name[1]) for name in names if name is not None), default=0)

    def start(self, kill: Kill | None = None) -> Start:
        """Start or resume the run. Raises AssertionError if it fails without having been killed."""
        first = self.position
        files = self.folder.parent / f"{self.folder.name}-start{len(self.starts)}"
        files.mkdir()
        with started_ranks(_rank, RANKS, self.config, self.folder.name, kill, str(files)) as ranks:
            killed = _wait(ranks, kill)
            codes = ranks.exitcodes
        killed = killed or (files / "struck").exists()
        text = "".join(path.read_text(errors="replace") for path in sorted(files.glob("out*")))
        assert killed or codes == [0] * RANKS, f"exit codes {codes}\n{text}"
        lines = [json.loads(line) for path in files.glob("rows*") for line in path.read_text().splitlines()]
        start = Start(killed, first, {(line["batch"], line["rank"]): line for line in lines})
        self.starts.append(start)
        return start

    def defects(self, whole: "KilledRun") -> list[str]:
        """Return the differences from an uninterrupted run. Call this after the run has ended."""
        return [*self._of_rows(whole.starts[0].batches), *self._of_files(whole)]

    def _of_rows(self, expected: Mapping[tuple[int, int], Any]) -> list[str]:
        found: list[str] = []
        history: dict[tuple[int, int], Any] = {}
        for number, start in enumerate(self.starts):
            trained = sorted(start.batches)
            found += [
                f"start {number}: batch {key[0]} of rank {key[1]} has other rows or another loss"
                for key in trained
                if start.batches[key] != expected[key]
            ]
            if trained and trained[0][0] != start.first:
                found.append(f"start {number}: begins with batch {trained[0][0]}, not {start.first}")
            history = {key: line for key, line in history.items() if key[0] < start.first}
            history.update(start.batches)
        if {key: line["rows"] for key, line in history.items()} != {key: x["rows"] for key, x in expected.items()}:
            found.append(f"the batches of the run: {sorted(history)}")
        return found

    def _of_files(self, whole: "KilledRun") -> list[str]:
        names, expected = ([path.name for path in checkpoints(run.folder)] for run in (self, whole))
        found = [f"{name} is missing" for name in expected if name not in names]
        found += [
            f"{name}: {what} differs"
            for name in expected
            if name in names
            for what, value in contents(whole.folder / name).items()
            if contents(self.folder / name).get(what) != value
        ]
        found += [f"{path.name} is left" for path in self.folder.iterdir() if path.name.startswith(".part")]
        if (newest := str((self.folder / "latest").readlink())) != expected[-1]:
            found.append(f"latest is {newest}")
        lines, expected_lines = record(self.folder), record(whole.folder)
        found += [f"record.jsonl: {line}" for line in lines if line not in expected_lines]
        # The last evaluation follows the last save, so the run is complete after it.
        return found + [
            f"record.jsonl lacks {line}"
            for line in expected_lines
            if line not in lines and not ("eval" in line and line["batch"] == LAST)
        ]


def contents(checkpoint: Path) -> dict[str, Any]:
    """Return the hashes of a checkpoint's tensor files, and the run's state without clock times."""
    manifest = read_manifest(checkpoint)
    assert manifest is not None
    state = json.loads((checkpoint / STATE).read_text())
    state["timestamp"] = {key: value for key, value in state["timestamp"].items() if not key.endswith("wct")}
    state["callbacks"]["Throughput"].pop("seconds")
    shards = {name: digest.xxh3_128 for name, digest in manifest.files.items() if name.endswith(".distcp")}
    return {**shards, **state}


def record(folder: Path) -> list[Any]:
    """Return the lines without events and times."""
    lines = [json.loads(line) for line in (folder / RECORD).read_text().splitlines()]
    return [{**line, "time": None} for line in lines if "event" not in line]


def _wait(ranks: Ranks, kill: Kill | None) -> bool:
    """Wait until all ranks have ended, and end the remaining ranks of a killed run like a launcher. Kills the ranks at
    the time of the kill, if it has one, and returns whether it has killed them."""
    began, struck = time.monotonic(), False
    while ranks.running and not ranks.failed:
        now = time.monotonic() - began
        if kill is not None and kill.moment is None and not struck and now > kill.seconds:
            struck = True
            if kill.everyone:
                kill_all(ranks.pids)
            else:
                _send(ranks.pids[kill.rank], signal.SIGKILL)
        assert now < _LIMIT, f"a start takes longer than {_LIMIT} s"
        time.sleep(0.01)
    for pid, code in zip(ranks.pids, ranks.exitcodes, strict=True):
        if code is None:
            _send(pid, signal.SIGTERM)
    ranks.end(grace=kill.grace if kill is not None else _LIMIT)
    return struck and -signal.SIGKILL in ranks.exitcodes


def _send(pid: int, number: int) -> None:
    """Send a signal to a process that may have just ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _rank(config: str, name: str, kill: Kill | None, files: str) -> None:
    """Run the unchanged program on one rank of a start, and record each step."""
    rank = int(os.environ["RANK"])
    handle = os.open(f"{files}/out{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    from train import main
    from train.run import trainer

    try:
        notes = _Notes(Path(files) / f"rows{rank}", rank, Trigger(kill, rank, Path(files)))
        build_callbacks = trainer.build_callbacks
        trainer.build_callbacks = lambda config: [notes, *build_callbacks(config)]
        code = main.main([config, f"run_name={name}"])
    except BaseException:
        traceback.print_exc()
        code = 1
    if code:
        sys.stderr.flush()
        # Skip the exit handlers, which would wait for the other rank.
        os._exit(code)


class _Notes(Callback):
    """Writes a line for each completed step: its rows on this rank, and the loss."""

    def __init__(self, file: Path, rank: int, trigger: Trigger) -> None:
        self._file, self._rank, self._trigger = file, rank, trigger
        self._rows: list[str] = []

    def batch_start(self, state: State, logger: Logger) -> None:
        self._trigger.in_batch(state.timestamp.batch.value)

    def before_train_batch(self, state: State, logger: Logger) -> None:
        rows = zip(state.batch["streams"].tolist(), state.batch["input_ids"].numpy(), strict=True)
        self._rows = [f"{stream}:{hashlib.sha256(row.tobytes()).hexdigest()[:16]}" for stream, row in rows]

    def batch_end(self, state: State, logger: Logger) -> None:
        loss = float(state.total_loss_dict["loss/train/total"]).hex()
        line = {"batch": state.timestamp.batch.value - 1, "rank": self._rank, "rows": self._rows, "loss": loss}
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def drawn_histories() -> Iterator[list[Kill]]:
    """Yield one to five kills for each history of a run. They are the same in every session, and all moments are
    equally frequent."""
    draw = random.Random(0)
    names: list[str] = []
    while True:
        count = draw.choices((1, 2, 3, 4, 5), (1, 2, 3, 3, 2))[0]
        kills = []
        for batch in sorted(draw.sample(range(LAST - 1), count)):
            if not names:
                names = draw.sample(list(MOMENTS), len(MOMENTS))
            kills.append(_drawn_kill(draw, None if draw.random() < 0.4 else names.pop(), batch))
        yield kills


def _drawn_kill(draw: random.Random, name: str | None, batch: int) -> Kill:
    everyone, grace = draw.random() < 0.4, draw.choice((0.2, 3.0))
    if name is None:
        seconds = draw.uniform(0.3, 5.0)
        return Kill(seconds=seconds, rank=draw.randrange(RANKS), everyone=everyone, grace=grace)
    moment = MOMENTS[name]
    if moment.setup:
        batch = 0
    elif moment.batches:
        batch = next((each for each in moment.batches if each >= batch), moment.batches[-1])
    rank, call = draw.choice(moment.ranks), draw.randint(1, moment.calls)
    return Kill(moment=name, rank=rank, everyone=everyone, batch=batch, call=call, grace=grace)


def history(config: str, name: str, kills: Sequence[Kill], whole: KilledRun) -> tuple[list[Kill], list[str]]:
    """Restart a run until all kills are used or it has ended. Returns the kills that hit it, and the differences from
    the uninterrupted run."""
    run, hit = KilledRun(config, name), []
    try:
        for kill in kills:
            if not run.start(kill).killed:
                break
            hit.append(kill)
        else:
            run.start()
    except AssertionError as error:
        return hit, [str(error)[-2000:]]
    return hit, run.defects(whole)
