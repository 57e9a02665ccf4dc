"""Two simulated nodes of one rank each on this machine: commands, variables and host names of each launcher."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

BIN = Path(sys.executable).parent
LAUNCHERS = ("composer", "torchrun", "python", "srun")

_OF_RANKS = ("SLURM_", "MASTER_", "TORCHELASTIC_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")
"""Prefixes of variables that launchers set; Composer sets some of them in a process without a launcher."""


def without_ranks() -> dict[str, str]:
    """Return the environment without a launcher's variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_OF_RANKS)}


def task_of_srun(node: int, port: str) -> dict[str, str]:
    """Return the variables that Slurm sets for a task of `srun --nodes 2 --ntasks-per-node 1`."""
    return {
        "SLURM_JOB_ID": "17",
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_STEP_NODELIST": "127.0.0.1,127.0.0.2",
        "SLURM_LOCALID": "0",
        "SLURM_PROCID": str(node),
        "SLURM_NODEID": str(node),
        "MASTER_PORT": port,
    }


def command_of(launcher: str, node: int, port: str) -> tuple[list[str], dict[str, str]]:
    """Return the command up to the script and the variables with which the rank of a node is started."""
    address = ["--master_addr", "127.0.0.1", "--master_port", port]
    if launcher == "composer":
        return [str(BIN / "composer"), "-n", "1", "--world_size", "2", "--node_rank", str(node), *address], {}
    if launcher == "torchrun":
        nodes = ["--nnodes", "2", "--node_rank", str(node)]
        return [str(BIN / "torchrun"), "--nproc_per_node", "1", *nodes, *address], {}
    if launcher == "srun":
        return [sys.executable], task_of_srun(node, port)
    ranks = {"RANK": str(node), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "NODE_RANK": str(node)}
    return [sys.executable], ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


@contextmanager
def started_nodes(
    folder: Path, launcher: str, arguments: Sequence[Sequence[str]]
) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Run `train.py` of the folder with its arguments on each node, with output to `out0` and `out1` in the folder.
    Processes that still run when the context ends are killed."""
    port = str(20000 + os.getpid() % 10000)
    nodes = []
    try:
        for node, each in enumerate(arguments):
            command, variables = command_of(launcher, node, port)
            with (folder / f"out{node}").open("w") as out:
                nodes.append(
                    subprocess.Popen(
                        [*_on_host(f"node{node}"), *command, "train.py", *each],
                        cwd=folder,
                        env=without_ranks() | {"OMP_NUM_THREADS": "1"} | variables,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        yield nodes
    finally:
        for process in nodes:
            process.kill()  # the launcher then sends SIGTERM to its ranks
            process.wait()


def _on_host(name: str) -> list[str]:
    """Return the prefix of a command that gives its host this name, if the system allows it."""
    return ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', name] if _can_name_hosts() else []


@cache
def _can_name_hosts() -> bool:
    command = ["unshare", "--uts", "hostname", "node0"]
    try:
        return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False
