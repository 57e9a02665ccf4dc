"""Provenance of a run: the git state of the code, the machine, and the start command, as written to record.jsonl."""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from data.secrets.redaction import redacted
from train.supervision.resume_command import started_by

_ROOT = Path(__file__).resolve().parents[2]
_GIT = ("git", "--no-optional-locks", "status", "--porcelain=v2", "--branch", "--untracked-files=no")
_GIT_SECONDS = 5.0


def git_state(root: Path = _ROOT) -> dict[str, Any] | None:
    """Return {commit, branch, dirty} of the checkout that the code runs from; branch is None for a detached HEAD.
    Returns None for installed code, and if git is missing, fails or is slow."""
    if not (root / ".git").exists():
        return None  # otherwise git would find a repository in a parent folder
    try:
        found = subprocess.run(_GIT, cwd=root, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = found.stdout.splitlines()
    head = dict(line.removeprefix("# branch.").split(" ", 1) for line in lines if line.startswith("# branch."))
    return {
        "commit": head.get("oid"),
        "branch": None if head.get("head") == "(detached)" else head.get("head"),
        "dirty": any(not line.startswith("#") for line in lines),
    }


def environment() -> dict[str, Any]:
    """Return {python, platform, hostname, cpus, memory_bytes} of this node."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hostname": platform.node(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
    }


def start_command() -> str:
    """Return the command that started this process, for a shell and without secrets: the launcher with its options, if
    any, the script and its arguments."""
    return shlex.join(map(redacted, [*started_by(), *sys.argv[1:]]))
