"""Faults: signals that are sent to ranks or to their launcher, and launchers that are killed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil

from scripts.bench.faults.injected import in_a_save, in_batch, send
from scripts.bench.faults.processes import ROOT, Ended
from scripts.bench.faults.runs import SAME, Case, Lab, refusal

_RESUMABLE = 75
"""The exit code of a run that a signal has stopped and that can be resumed."""
_RANKS = 2
_SAVED = "saved, resume command shown, exit code 75, same model after resume"
_LAUNCHED = "saved, resume command shown, ranks ended, same model"
_PATIENCE = 60.0
"""Seconds within which all ranks must end after the launcher received the signal."""


def _to_ranks(number: int, ranks: Sequence[int], lab: Lab) -> Iterator[str]:
    run = lab.new() / "run"
    yield _after(lab, lab.resume(run, ranks=_RANKS, hook=partial(in_batch, ranks, partial(send, number))), run)


def _in_a_save(ranks: Sequence[int], lab: Lab) -> Iterator[str]:
    run = lab.new() / "run"
    hook = partial(in_a_save, ranks, signal.SIGTERM, 2.0)
    yield _after(lab, lab.resume(run, ranks=_RANKS, hook=hook, others_seconds=20), run)


def _after(lab: Lab, ended: Ended, run: Path) -> str:
    """The outcome of a run whose ranks received a signal, and of the resumed run."""
    if ended.code is None or ended.crashed:
        return str(refusal(ended))
    if set(ended.codes) != {_RESUMABLE}:
        return f"exit codes {ended.codes}"
    if not _says_what_was_saved(ended.text, run):
        return "saved, resume command not shown"
    again = lab.outcome(lab.resume(run, ranks=_RANKS), run, ranks=_RANKS)
    return _SAVED if again == SAME else f"after resume: {again}"


def _says_what_was_saved(text: str, run: Path) -> bool:
    """Whether the final message contains the name of the newest checkpoint and the option that resumes from it."""
    newest = max(run.glob("ep*"), key=lambda path: int(path.name.rpartition("ba")[2]), default=None)
    last = text.strip().rpartition("stopped: ")[2]
    return newest is not None and newest.name in last and "autoresume=true" in last


_LAUNCHERS = {
    "composer": ("-n", str(_RANKS)),
    "torchrun": ("--nproc_per_node", str(_RANKS), "--master_port", "29517"),
}


def _to_launcher(launcher: str, number: int, lab: Lab) -> Iterator[str]:
    """Send the signal to the launcher once the run has saved a checkpoint."""
    folder = lab.new()
    run, log = folder / "run", folder / "log.txt"
    flags = (
        *(f"save_folder={run}", "max_duration=5000ba", "train_loader.dataset.max_repeats=300"),
        *("save_interval=2ba", "save_num_checkpoints_to_keep=2"),
    )
    command = [str(Path(sys.executable).parent / launcher), *_LAUNCHERS[launcher], "train.py", lab.config, *flags]
    with log.open("w") as output:
        started = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
    ranks: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 180
        while not list(run.glob("ep0-ba*")):
            if started.poll() is not None or time.monotonic() > deadline:
                yield f"the run did not start: {log.read_text()[-2000:]}"
                return
            time.sleep(0.1)
        ranks = psutil.Process(started.pid).children(recursive=True)
        began = time.monotonic()
        os.kill(started.pid, number)
        _, left = psutil.wait_procs(ranks, timeout=_PATIENCE)
        took = time.monotonic() - began
        if left:
            yield f"{len(left)} processes still run after {took:.0f} s"
            return
        started.wait(_PATIENCE)
    finally:
        for process in ranks:
            if process.is_running():
                process.kill()
        started.kill()
        started.wait()
    yield _after_launch(lab, run, log.read_text())


def _after_launch(lab: Lab, run: Path, text: str) -> str:
    """Compare the checkpoint that was saved after the signal with the result of a run of the same number of batches,
    and return the outcome."""
    if not (named := re.search(r"stopped: .*ep0-ba(\d+).*autoresume=true", text, re.DOTALL)):
        return "saved checkpoint not reported"
    if not (run / f"ep0-ba{named[1]}").exists():
        return "not saved"
    return _LAUNCHED if lab.exported(run) == lab.model(_RANKS, int(named[1])) else "another model"


_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        *(
            Case(f"{number.name} to {whom}", _SAVED, partial(_to_ranks, number, ranks))
            for number in _SIGNALS
            for whom, ranks in {"one rank": (1,), "all ranks": range(_RANKS)}.items()
        ),
        Case("SIGTERM to one rank during a save", _SAVED, partial(_in_a_save, (1,))),
        Case("SIGTERM to all ranks during a save", _SAVED, partial(_in_a_save, range(_RANKS))),
        *(
            Case(f"{number.name} to {launcher}", _LAUNCHED, partial(_to_launcher, launcher, number))
            for launcher in _LAUNCHERS
            for number in (*_SIGNALS, signal.SIGKILL)
        ),
    )
}
