"""Runs under real launchers, and as started by scripts/launch, that receive signals during training."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.helpers.toy_run import write_toy_run
from train.checkpoint.save_folder import checkpoints

pytestmark = [pytest.mark.subprocess, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ENDLESS = ["max_duration=100000ba", "train_loader.dataset.max_repeats=1e9", "eval_loader=null", "save_interval=2ba"]

SLOW_TRAIN = """\
import os, sys, time
sys.path.insert(0, {root!r})
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
from train.main import main
from train.checkpoint.storage.writer import HashingWriter
write = HashingWriter.write_data
def slow(self, plan, planner):
    time.sleep({seconds} if os.path.exists({signalled!r}) else 0)
    return write(self, plan, planner)
HashingWriter.write_data = slow
sys.exit(main())
"""
"""train.py with checkpoints that take longer to write once the run has received a signal."""


@contextmanager
def started(folder: Path, command: list[str], **env: str) -> Iterator[subprocess.Popen]:
    """Start the command in the folder, and return it once its run has saved a checkpoint."""
    inherited = {key: value for key, value in os.environ.items() if not key.endswith(("RANK", "WORLD_SIZE"))}
    path = f"{folder / 'bin'}:{BIN}:{os.environ['PATH']}"
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        run = subprocess.Popen(
            command,
            cwd=folder,
            env=inherited | {"OMP_NUM_THREADS": "1", "PATH": path} | env,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    all_of_it: list[psutil.Process] = []
    try:
        wait_until(lambda: bool(checkpoints(folder / "toy")) or run.poll() is not None)
        assert run.poll() is None, (folder / "err").read_text()[-2000:]
        all_of_it = psutil.Process(run.pid).children(recursive=True)
        yield run
    finally:
        for process in [*all_of_it, *([psutil.Process(run.pid)] if run.poll() is None else [])]:
            if process.is_running():
                process.kill()
        run.wait()


def wait_until(is_so: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.05)


def write_train(folder: Path, seconds: float = 0.0) -> str:
    (folder / "train.py").write_text(
        SLOW_TRAIN.format(root=str(ROOT), seconds=seconds, signalled=str(folder / "signalled"))
    )
    return write_toy_run(folder)


def ranks_of(run: subprocess.Popen) -> list[psutil.Process]:
    # Under srun a rank sets these variables itself, so they are not visible from outside of the process.
    of_rank = {"RANK", "SLURM_PROCID"}
    found = [each for each in psutil.Process(run.pid).children(recursive=True) if of_rank & each.environ().keys()]
    assert len(found) == 2
    return found


def preempted(folder: Path) -> dict[str, Any]:
    events = [json.loads(line) for line in (folder / "toy/record.jsonl").read_text().splitlines()]
    (event,) = [event for event in events if event.get("event") == "preempted"]
    assert checkpoints(folder / "toy")[-1].name == f"ep0-ba{event['batch']}"
    return event


SRUN = """\
#!/bin/bash
shift  # --kill-on-bad-exit=0
export COMMAND="$*"
exec bash -c '
  for task in 0 1; do
    SLURM_STEP_ID=0 SLURM_STEP_NUM_NODES=1 SLURM_STEP_NUM_TASKS=2 SLURM_STEP_TASKS_PER_NODE=2 \\
      SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NODEID=0 $COMMAND &
  done
  wait %1
  code=$?
  wait %2
  exit $code
'
"""
"""Start two tasks of a node like srun; their parent does not show its command, like slurmstepd."""


@pytest.mark.proof
@pytest.mark.parametrize("seconds", [2, 40])
def test_the_slurm_script_saves_for_longer_than_a_launcher_waits_and_requeues(tmp_path: Path, seconds: float) -> None:
    config = write_train(tmp_path, seconds)
    (tmp_path / "bin").mkdir()
    programs = {"srun": SRUN, "scontrol": f'#!/bin/bash\necho "$@" >> {tmp_path}/requeued\n'}
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    command = ["bash", str(ROOT / "scripts/launch/slurm.sbatch"), config, *ENDLESS]
    job = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "2", "SLURM_CPUS_PER_TASK": "1"}
    with started(tmp_path, command, MASTER_PORT=str(20000 + os.getpid() % 10000), **job) as run:
        (tmp_path / "signalled").touch()
        for task in ranks_of(run):  # --signal of sbatch does not signal the batch script
            task.send_signal(signal.SIGUSR1)
        assert run.wait(180) == 75
    assert preempted(tmp_path)["exit_code"] == 75
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    err = (tmp_path / "err").read_text()
    assert f"; resume with: srun --nodes 1 --ntasks 2 python train.py {config} " in err
    assert "Traceback" not in err


@pytest.mark.proof
def test_the_kubernetes_hook_saves_and_ends_process_1(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-pf", "--mount-proc", "true"], check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no pid namespace can be made here")
    config = write_train(tmp_path, 40)
    (container,) = yaml.safe_load((ROOT / "scripts/launch/kubernetes.yaml").read_text())["spec"]["template"]["spec"][
        "containers"
    ]
    launcher = container["command"][: container["command"].index("train.py") + 1]
    launcher[launcher.index("8")] = "2"
    unshare = ["unshare", "-pf", "--kill-child", "--mount-proc"]
    with started(tmp_path, [*unshare, *launcher, config, *ENDLESS]) as run:
        (tmp_path / "signalled").touch()
        (first,) = psutil.Process(run.pid).children()
        hook = container["lifecycle"]["preStop"]["exec"]["command"]
        hook_run = subprocess.Popen(["nsenter", "-t", str(first.pid), "-p", "-m", *hook])
        assert run.wait(180) == 75
        hook_run.wait(20)
    assert preempted(tmp_path)["exit_code"] == 75


@pytest.mark.proof
@pytest.mark.parametrize("launcher", ["composer -n 2", "torchrun --nproc_per_node 2"])
@pytest.mark.parametrize(
    ("number", "to"),
    [
        (signal.SIGTERM, "launcher"),
        (signal.SIGINT, "group"),
        (signal.SIGUSR1, "launcher"),
        (signal.SIGKILL, "launcher"),
        (signal.SIGUSR1, "one rank"),
    ],
)
def test_ranks_save_and_end_whichever_process_is_signalled(
    tmp_path: Path, launcher: str, number: signal.Signals, to: str
) -> None:
    config = write_train(tmp_path)
    program, *options = launcher.split()
    with started(tmp_path, [str(BIN / program), *options, "train.py", config, *ENDLESS]) as run:
        ranks = ranks_of(run)
        if to == "group":
            os.killpg(run.pid, number)
        else:
            (run if to == "launcher" else ranks[1]).send_signal(number)
        code = run.wait(120)
        wait_until(lambda: not any(rank.is_running() for rank in ranks))
    # SIGUSR1 and SIGKILL kill the launcher, after which the system sends SIGTERM to the ranks.
    cause = number.name if number in (signal.SIGTERM, signal.SIGINT) or to == "one rank" else "SIGTERM"
    assert preempted(tmp_path)["message"].startswith(f"{cause} received: batch ")
    killed = to == "launcher" and number in (signal.SIGUSR1, signal.SIGKILL)
    assert code == (-number if killed else 75 if program == "composer" else 1)
    err = (tmp_path / "err").read_text()
    assert "train/main.py" not in err  # the only tracebacks are those of the launchers
    assert err.count("stopped: ") == 1
    assert f"; resume with: {launcher} train.py {config} {' '.join(ENDLESS)} autoresume=true\n" in err


@pytest.mark.proof
def test_the_command_in_the_last_line_resumes(tmp_path: Path) -> None:
    config = write_train(tmp_path)
    with started(tmp_path, [str(BIN / "composer"), "-n", "2", "train.py", config, *ENDLESS]) as run:
        ranks_of(run)[0].send_signal(signal.SIGTERM)
        assert run.wait(120) == 75
    err = (tmp_path / "err").read_text()
    (command,) = [line.partition("; resume with: ")[2] for line in err.splitlines() if line.startswith("stopped: ")]
    batch = preempted(tmp_path)["batch"]
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    subprocess.run(f"{command} max_duration={batch + 1}ba", shell=True, cwd=tmp_path, env=env, check=True, timeout=300)
    assert checkpoints(tmp_path / "toy")[-1].name == f"ep0-ba{batch + 1}"
