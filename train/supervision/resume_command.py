"""The commands that resume a run or recompute one of its batches, with the launcher and the options with which the user
started the run."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from data.secrets.redaction import redacted
from train.distributed.slurm import is_task_of_srun

_INTERPRETERS = ("python", "pypy")
_OF_LAUNCHERS = ("RANK", "MASTER_ADDR")
"""Variables that launchers set. Composer sets RANK itself for a process without a launcher."""


def resume_command(arguments: Sequence[str]) -> str:
    """Return the shell command that resumes the run, without secrets: the launcher with its options, if any, the
    script, its arguments, and autoresume=true. Must be called while the launcher is still running."""
    # Use the arguments of this rank. The arguments of other ranks, and the arguments before the launcher expanded them,
    # are unknown.
    kept = [argument for argument in arguments if not argument.startswith("autoresume=")]
    return shlex.join(map(redacted, [*started_by(), *kept, "autoresume=true"]))


def replay_command(incident: Path) -> str:
    """Return the shell command that recomputes the batch of an incident, without secrets: the launcher with its
    options, if any, and scripts/replay_batch.py."""
    program = _launched_by(sys.argv[0]) if _is_launched() else ["python"]
    return shlex.join(map(redacted, [*program, "scripts/replay_batch.py", str(incident)]))


def started_by() -> list[str]:
    """Return the start of the command line: the launcher or the interpreter, its options, and the script."""
    script = sys.argv[0]
    if not _is_launched():
        own = sys.orig_argv
        return [_name(own[0]), *own[1 : own.index(script) + 1]] if script in own[1:] else ["python", "train.py"]
    return [*_launched_by(script), script]


def _is_launched() -> bool:
    return all(name in os.environ for name in _OF_LAUNCHERS)


def _launched_by(script: str) -> list[str]:
    return _launcher(script) or _usual_launcher()


def _launcher(script: str) -> list[str]:
    """Return the parent's command line up to the script; empty if the parent did not start the script."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
    # With `python -c` there is no script to look for.
    if script.startswith("-") or script not in words[1:]:
        return []
    words = words[: words.index(script)]
    if _name(words[0]).startswith(_INTERPRETERS) and len(words) > 1 and not words[1].startswith("-"):
        words = words[1:]  # drop the interpreter of an installed program such as .venv/bin/composer
    return [_name(words[0]), *words[1:]]


def _usual_launcher() -> list[str]:
    if is_task_of_srun(os.environ):
        return ["srun", *_options_of_srun(), "python"]
    n_ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return ["torchrun", "--nproc_per_node", n_ranks]
    return ["composer", "-n", n_ranks]


def _options_of_srun() -> list[str]:
    """Return the options of srun. srun is not the parent of its tasks, so its options are derived from the variables
    that Slurm sets."""
    options = {
        "--nodes": os.environ.get("SLURM_STEP_NUM_NODES"),
        "--ntasks": os.environ["WORLD_SIZE"],
        "--gpus-per-node": os.environ.get("SLURM_GPUS_PER_NODE"),
    }
    return [word for name, value in options.items() if value for word in (name, value)]


def _name(program: str) -> str:
    """Return the program's file name. In an activated environment, the program is on the PATH."""
    return Path(program).name
