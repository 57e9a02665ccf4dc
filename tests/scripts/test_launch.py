"""The files in scripts/launch are consistent with the code: arguments, exit codes, signals, and related numbers."""

import re
import signal
import subprocess
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml
from composer.cli.launcher import _get_parser

from train.config.load import load_config
from train.supervision.exit_codes import ExitCode
from train.supervision.signals import _SIGNALS

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "scripts/launch"
START_AGAIN = [ExitCode.RESUMABLE, 128 + signal.SIGUSR1, 128 + signal.SIGTERM]
"""Exit codes of a run that was saved, or that was signalled before there was anything to save."""
SLURM = (LAUNCH / "slurm.sbatch").read_text()


def spec_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / name).read_text())["spec"]


def job_of(name: str) -> dict[str, Any]:
    spec = spec_of(name)
    return spec["replicatedJobs"][0]["template"]["spec"] if "replicatedJobs" in spec else spec


def container_of(name: str) -> dict[str, Any]:
    (container,) = job_of(name)["template"]["spec"]["containers"]
    return container


def launched_by(name: str) -> Namespace:
    """Return how Composer's launcher parses the options; Kubernetes sets the node's number."""
    composer, *words = container_of(name)["command"]
    assert composer == "composer"
    return _get_parser().parse_args(
        [word.replace("$(NODE_RANK)", "1") for word in words[: words.index("train.py") + 1]]
    )


MANIFESTS = pytest.mark.parametrize("name", ["kubernetes.yaml", "jobset.yaml"])


@MANIFESTS
def test_composer_and_train_accept_the_command(name: str) -> None:
    words = container_of(name)["command"]
    path, *overrides = words[words.index("train.py") + 1 :]
    config = load_config(str(ROOT / path), overrides).config
    assert config.autoresume
    assert config.save_folder is not None
    assert launched_by(name).nproc == container_of(name)["resources"]["limits"]["nvidia.com/gpu"]
    mounts = [mount["mountPath"] for mount in container_of(name)["volumeMounts"]]
    assert config.save_folder.startswith(tuple(f"{mount}/" for mount in mounts))


def test_the_pods_of_a_jobset_find_each_other() -> None:
    manifest = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job, container = job_of("jobset.yaml"), container_of("jobset.yaml")
    launched = launched_by("jobset.yaml")
    name = manifest["metadata"]["name"]
    assert launched.master_addr == f"{name}-{replicated['name']}-0-0.{name}"
    assert launched.master_port in [port["containerPort"] for port in container["ports"]]
    assert job["parallelism"] == job["completions"]
    assert launched.world_size == launched.nproc * job["parallelism"]
    assert job["completionMode"] == "Indexed"
    assert [variable["name"] for variable in container["env"] if "valueFrom" in variable] == ["NODE_RANK"]


@MANIFESTS
def test_the_hook_sends_a_signal_on_which_a_run_saves(name: str) -> None:
    hook = container_of(name)["lifecycle"]["preStop"]["exec"]["command"]
    sent = re.search(r"kill -(\w+) -1;", hook[-1])
    assert sent is not None
    assert signal.Signals[f"SIG{sent[1]}"] in _SIGNALS


def exit_codes(name: str) -> dict[str, list[int]]:
    """Return the exit codes for each action."""
    rules = job_of(name)["podFailurePolicy"]["rules"]
    return {rule["action"]: rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule}


def test_exit_codes_match_those_of_a_run() -> None:
    assert exit_codes("kubernetes.yaml") == {"Ignore": START_AGAIN, "FailJob": [ExitCode.FIXABLE]}
    # The pods of a JobSet restart together: the Job fails, and the JobSet creates a new one.
    assert exit_codes("jobset.yaml") == {"FailJob": START_AGAIN}
    (rule,) = spec_of("jobset.yaml")["failurePolicy"]["rules"]
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    codes = re.search(r"^ +([\d |]+)\) scontrol requeue", SLURM, re.MULTILINE)
    assert codes is not None
    assert [int(code) for code in codes[1].split("|")] == START_AGAIN


def test_the_slurm_script_starts_a_task_for_each_gpu_and_signals_it_in_time() -> None:
    subprocess.run(["bash", "-n", LAUNCH / "slurm.sbatch"], check=True)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SLURM, re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert "requeue" in options
    number, _, seconds = options["signal"].partition("@")
    assert signal.Signals[f"SIG{number}"] in _SIGNALS
    hours, minutes, rest = map(int, options["time"].split(":"))
    assert 60 < int(seconds) < 3600 * hours + 60 * minutes + rest
    (command,) = re.findall(r"^srun .*$", SLURM, re.MULTILINE)
    overrides = command.partition('train.py "$@"')[2].split()
    assert load_config(str(ROOT / "yamls/finetune/dbrx.yaml"), overrides).config.autoresume


def test_the_image_is_installed_from_the_lock_as_the_makefile_does() -> None:
    image, makefile = (LAUNCH / "Dockerfile").read_text(), (ROOT / "Makefile").read_text()
    version = re.search(r"^FROM python:3\.(\d+)-", image, re.MULTILINE)
    assert version is not None
    assert 11 <= int(version[1]) < 14  # requires-python of pyproject.toml
    assert (ROOT / "requirements.lock").exists()
    for command in ("pip sync", "pip install"):
        (ours,) = re.findall(rf"/uv {command} (.+)$", image, re.MULTILINE)
        options = {option for option in ours.split() if option.startswith("--")} - {"--no-cache"}
        theirs = re.findall(rf"/uv {command} (.+)$", makefile, re.MULTILINE)
        assert any(options <= set(each.split()) for each in theirs), (options, theirs)
    assert {".git", ".venv", "runs"} <= set((LAUNCH / "Dockerfile.dockerignore").read_text().split())


@pytest.mark.parametrize(
    ("array", "added"),
    [
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "4"}, "--part 2/4"),
        ({}, "--merge"),
    ],
)
def test_the_preparation_script_prepares_a_part_in_an_array_and_merges_otherwise(tmp_path, array, added) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    command = ["bash", LAUNCH / "prepare.sbatch", "convert.py", "--out_root", "a b"]
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", **array}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == f"convert.py --out_root a b {added}\n"
