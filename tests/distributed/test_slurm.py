"""Ranks of srun: the variables they get, and rejected settings. Two tasks as Slurm starts them train as two ranks."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data.base.errors import ConfigError
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from tests.helpers.two_nodes import started_nodes, without_ranks
from tests.helpers.watched_run import run
from train.checkpoint.storage.manifest import read_manifest
from train.distributed.slurm import is_task_of_srun, ranks_of_srun

SHORT = ["max_duration=2ba", "eval_loader=null"]
ROOT = Path(__file__).resolve().parents[2]
TASK = {
    "SLURM_JOB_ID": "4321",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),3",
    "SLURM_STEP_NODELIST": "gpu[03-05]",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def test_each_slurm_task_is_a_rank() -> None:
    assert ranks_of_srun(TASK) == {
        "RANK": "3",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "NODE_RANK": "1",
        "MASTER_ADDR": "gpu03",
        "MASTER_PORT": str(12000 + 7 * 4321 % 16000 + 2),
    }
    assert ranks_of_srun(TASK | {"SLURM_PROCID": "6", "SLURM_NODEID": "2"})["LOCAL_WORLD_SIZE"] == "3"
    chosen = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert ranks_of_srun(TASK | chosen).items() >= chosen.items()
    assert is_task_of_srun(TASK | ranks_of_srun(TASK))


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node7", "node7"),
        ("gpu[03-05,9],login", "gpu03"),
        ("rack[0-1]n[2-3],x", "rack0n2"),
        ("a-[001-003]-ib,b", "a-001-ib"),
        ("login,gpu[03-05]", "login"),
    ],
)
def test_the_first_of_several_nodes_has_rank_0(nodes: str, first: str) -> None:
    assert ranks_of_srun(TASK | {"SLURM_STEP_NODELIST": nodes})["MASTER_ADDR"] == first


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1"},
        {**TASK, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"},
        {**TASK, "RANK": "0", "WORLD_SIZE": "2"},
    ],
    ids=["no Slurm", "one task", "a step of one task", "a launcher within Slurm"],
)
def test_other_launchers_are_left_unchanged(environment: dict[str, str]) -> None:
    assert ranks_of_srun(environment) == {}
    assert not is_task_of_srun(environment)


def without(*names: str, **others: str) -> dict[str, str]:
    return {name: value for name, value in TASK.items() if name not in names} | others


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"}, "SLURM_NTASKS is 8, but srun has not started this process"),
        (without("SLURM_LOCALID"), "SLURM_LOCALID is not set"),
        (without("SLURM_STEP_NODELIST", SLURM_NNODES="3"), "set MASTER_ADDR to the node of rank 0"),
        (without("SLURM_STEP_TASKS_PER_NODE", SLURM_NNODES="3"), "SLURM_TASKS_PER_NODE is not set"),
        ({**TASK, "SLURM_STEP_TASKS_PER_NODE": "2x3"}, "is '2x3', but it must have the form 4(x2),3"),
        ({**TASK, "SLURM_NODEID": "3"}, "SLURM_NODEID is 3, but SLURM_STEP_TASKS_PER_NODE 2(x2),3 lists only 3 nodes"),
        ({**TASK, "SLURM_PROCID": "x"}, "SLURM_PROCID is 'x', but it must be a number"),
        ({**TASK, "CUDA_VISIBLE_DEVICES": "0"}, "run srun with --gpus-per-node instead of --gpus-per-task"),
    ],
)
def test_slurm_settings_that_would_start_independent_runs_are_rejected(environment: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ranks_of_srun(environment)
    assert text in str(caught.value)


def written(checkpoint: Path) -> dict[str, Any]:
    """The hashes of weights and optimizer states, by the file of each rank."""
    manifest = read_manifest(checkpoint)
    assert manifest is not None
    return {name: digest for name, digest in manifest.files.items() if name.endswith(".distcp")}


@pytest.mark.proof
@pytest.mark.ranks
@pytest.mark.subprocess
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_two_tasks_on_two_nodes_train_together(tmp_path: Path) -> None:
    """Each task has its own cache, as on nodes without a shared disk."""
    path = write_toy_run(tmp_path)
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    arguments = [[path, *SHORT, f"train_loader.dataset.cache_dir={tmp_path / f'cache{node}'}"] for node in range(2)]
    with started_nodes(tmp_path, "srun", arguments) as tasks:
        codes = [task.wait() for task in tasks]
    assert codes == [0, 0], [(tmp_path / f"out{node}").read_text() for node in range(2)]
    run_ranks(run, 2, path, [*SHORT, "run_name=forked"])
    assert written(tmp_path / "toy/ep0-ba2") == written(tmp_path / "forked/ep0-ba2")


@pytest.mark.subprocess
def test_a_batch_script_without_srun_is_reported(tmp_path: Path) -> None:
    environment = without_ranks() | {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
    command = [sys.executable, "train.py", write_toy_run(tmp_path)]
    process = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=False)
    assert process.returncode == 2
    assert process.stderr.startswith(
        "error: SLURM_NTASKS is 8, but srun has not started this process: use `srun python"
    )
    assert not (tmp_path / "toy").exists()
