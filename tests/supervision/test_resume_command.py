"""The commands that a user is shown, derived from the launcher's command line."""

import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from train.supervision.resume_command import replay_command, resume_command


@pytest.mark.parametrize(
    ("launcher", "shown"),
    [
        (["/venv/bin/python", "/venv/bin/composer", "-n", "8", "--world_size", "16"], "composer -n 8 --world_size 16"),
        (["/bin/torchrun", "--nproc_per_node", "8", "--nnodes", "2"], "torchrun --nproc_per_node 8 --nnodes 2"),
        # For other programs only the ranks of this node are known, not how nodes find each other.
        (["/sbin/init"], "composer -n 8"),
    ],
)
def test_the_replay_command_uses_the_launcher_of_the_run(
    launcher: list[str], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = launcher if launcher == ["/sbin/init"] else [*launcher, "train.py", "mine.yaml"]
    monkeypatch.setattr(psutil, "Process", lambda pid: SimpleNamespace(cmdline=lambda: words))
    monkeypatch.setattr(sys, "argv", ["train.py", "mine.yaml"])
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in {"RANK": "8", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "node0"}.items():
        monkeypatch.setenv(name, value)
    assert replay_command(Path("runs/mine/incidents/ba7")) == f"{shown} scripts/replay_batch.py runs/mine/incidents/ba7"
    monkeypatch.setattr(psutil, "Process", lambda pid: SimpleNamespace(cmdline=lambda: ["slurmstepd: [4321.0]"]))
    monkeypatch.setenv("SLURM_PROCID", "8")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "16")
    for name in ("SLURM_STEP_NUM_NODES", "SLURM_GPUS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    assert replay_command(Path("ba7")) == "srun --ntasks 16 python scripts/replay_batch.py ba7"
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_GPUS_PER_NODE", "8")
    assert resume_command(["mine.yaml", "seed=3"]) == (
        "srun --nodes 2 --ntasks 16 --gpus-per-node 8 python train.py mine.yaml seed=3 autoresume=true"
    )
    monkeypatch.delenv("MASTER_ADDR")  # Composer sets only RANK in a process without a launcher
    assert replay_command(Path("ba7")) == "python scripts/replay_batch.py ba7"
