"""Two simulated nodes train the same under each launcher, with shared and separate caches; signals under srun."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from tests.helpers.two_nodes import LAUNCHERS, started_nodes
from tests.helpers.watched_run import run
from train.checkpoint.save_folder import checkpoints

pytestmark = [pytest.mark.proof, pytest.mark.subprocess, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["max_duration=4ba", "eval_loader=null"]
ENDLESS = ["max_duration=100000ba", "train_loader.dataset.max_repeats=1e9", "eval_loader=null", "save_interval=2ba"]
WITH_LOSSES = """\
import json, os, sys
sys.path.insert(0, {root!r})
import train.run.fit as module
from train.main import main
from tests.helpers.watched_run import Watch
watch, fit = Watch(None), module.fit
module.fit = lambda config, **others: fit(config, callbacks=[watch], **others)
code = main()
with open("losses" + os.environ["RANK"], "w") as file:
    json.dump(watch.losses, file)
sys.exit(code)
"""
"""A train.py that writes the loss of each batch with all digits."""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The losses of two ranks started without a launcher."""
    folder = tmp_path_factory.mktemp("forked")
    losses = run_ranks(run, 2, write_toy_run(folder), SHORT)[0]["losses"]
    return json.loads(json.dumps(losses))


@pytest.mark.ranks
@pytest.mark.parametrize("cache", ["shared", "separate"])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_nodes_have_the_same_losses(
    launcher: str, cache: str, expected: dict[str, float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_toy_run(tmp_path)
    (tmp_path / "train.py").write_text(WITH_LOSSES.format(root=str(ROOT)))
    folders = [f"train_loader.dataset.cache_dir={tmp_path}/cache{node}" for node in range(2)]
    own = [[folder] if cache == "separate" else [] for folder in folders]
    with started_nodes(tmp_path, launcher, [[config, *SHORT, *each] for each in own]) as nodes:
        codes = [node.wait(400) for node in nodes]
    assert codes == [0, 0], [(tmp_path / f"out{node}").read_text()[-3000:] for node in range(2)]
    losses = [json.loads((tmp_path / f"losses{rank}").read_text()) for rank in range(2)]
    with capsys.disabled():
        print(f"\n{launcher:<8} {cache:<8} {' '.join(f'{loss:.9f}' for loss in losses[0].values())}")
    assert losses[0] == losses[1] == expected
    assert [folder.name for folder in sorted(tmp_path.glob("cache*"))] == (
        ["cache"] if cache == "shared" else ["cache0", "cache1"]
    )


def wait_until(is_so: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.05)


@pytest.mark.parametrize("to", ["tasks", "one task", "step"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_tasks_of_srun_save_and_name_srun(number: signal.Signals, to: str, tmp_path: Path) -> None:
    """Slurm signals only the tasks (scancel --signal), or every process of the step including the loaders' workers
    (sbatch --signal, preemption, the time limit)."""
    config = write_toy_run(tmp_path)
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    arguments = [config, *ENDLESS, "train_loader.num_workers=1"]
    with started_nodes(tmp_path, "srun", [arguments, arguments]) as nodes:
        wait_until(lambda: bool(checkpoints(tmp_path / "toy")) or any(node.poll() is not None for node in nodes))
        tasks = [psutil.Process(node.pid) for node in nodes]
        workers = [child for task in tasks for child in task.children(recursive=True)]
        assert len(workers) >= 2
        for process in {"tasks": tasks, "one task": tasks[1:], "step": [*tasks, *workers]}[to]:
            process.send_signal(number)
        assert [node.wait(120) for node in nodes] == [75, 75]
        wait_until(lambda: not any(worker.is_running() for worker in workers), 20)
    outputs = [(tmp_path / f"out{node}").read_text() for node in range(2)]
    assert sum(output.count("stopped: ") for output in outputs) == 1
    newest = checkpoints(tmp_path / "toy")[-1]
    command = f"srun --nodes 2 --ntasks 2 python train.py {' '.join(arguments)} autoresume=true\n"
    line = f"stopped: {number.name} received: batch {newest.name[6:]} is saved in {newest}; resume with: {command}"
    assert line in outputs[0]
    assert not any("Traceback" in output for output in outputs)
