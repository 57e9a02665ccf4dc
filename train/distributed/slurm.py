"""Ranks that are started by `srun`: converts Slurm's environment variables to those that torch and Composer read. Does
not import torch.

Slurm's variables: https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES.
"""

import re
from collections.abc import Mapping

from data.base.errors import ConfigError

_FIRST_PORT, _N_PORTS = 12000, 16000
"""The first port, and the number of ports, of the range from which a port is chosen. The range is below the ports that
Linux assigns to outgoing connections (32768 and above)."""


def ranks_of_srun(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE and related variables for a task of a Slurm step with several tasks. The result is empty if a
    launcher has already set these variables, or if Slurm has started a single process.

    Raises ConfigError if a job has several tasks but srun did not start this process, because independent runs would
    overwrite each other's checkpoints.
    """
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return {}
    in_step = {"SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID", "SLURM_STEPID"} & environment.keys()
    n_tasks = _number(environment, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS")
    if n_tasks is None or n_tasks == 1:
        return {}
    if not in_step and environment.get("SLURM_PROCID", "0") == "0":
        raise ConfigError(
            f"SLURM_NTASKS is {n_tasks}, but srun has not started this process: use `srun python train.py ...` for "
            f"{n_tasks} ranks, or `env -u SLURM_NTASKS python train.py ...` for one rank"
        )
    rank, node = _needed(environment, "SLURM_PROCID"), _number(environment, "SLURM_NODEID") or 0
    local_rank, local = _needed(environment, "SLURM_LOCALID"), _tasks_of_node(environment, node, n_tasks)
    _check_visible_gpus(environment, local)
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(n_tasks),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local),
        "NODE_RANK": str(node),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _first_node(environment),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_port(environment)),
    }


def is_task_of_srun(environment: Mapping[str, str]) -> bool:
    """Whether srun itself started this rank, without a launcher such as torchrun."""
    launched = "TORCHELASTIC_RUN_ID" in environment
    ranks = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS"}
    return not launched and all(
        ours in environment and environment.get(its) == environment[ours] for ours, its in ranks.items()
    )


def _tasks_of_node(environment: Mapping[str, str], node: int, n_tasks: int) -> int:
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        if (counts := environment.get(name)) is not None:
            return _counted(name, counts, node)
    if (_number(environment, "SLURM_NNODES") or 1) == 1:
        return n_tasks
    raise ConfigError(f"SLURM_NTASKS is {n_tasks}, but SLURM_TASKS_PER_NODE is not set: start the ranks with srun")


def _counted(name: str, counts: str, node: int) -> int:
    """The number of tasks on a node, from a list in Slurm's notation: `4(x2),3` means 4, 4 and 3 tasks on three
    nodes."""
    expanded: list[int] = []
    for part in counts.split(","):
        if (found := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)) is None:
            raise ConfigError(f"{name} is {counts!r}, but it must have the form 4(x2),3")
        expanded += [int(found[1])] * int(found[2] or 1)
    if node >= len(expanded):
        raise ConfigError(f"SLURM_NODEID is {node}, but {name} {counts} lists only {len(expanded)} nodes")
    return expanded[node]


def _first_node(environment: Mapping[str, str]) -> str:
    """The node of task 0, such as gpu03 for the node list `gpu[03-05,9],login`."""
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    nodes = next((environment[name] for name in names if environment.get(name)), None)
    if nodes is None:
        if (_number(environment, "SLURM_NNODES") or 1) == 1:
            return "127.0.0.1"
        raise ConfigError("SLURM_STEP_NODELIST is not set: set MASTER_ADDR to the node of rank 0")
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    assert first is not None, nodes
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0])


def _port(environment: Mapping[str, str]) -> int:
    """A port that is the same for all tasks of a step, and differs from the ports of other steps on the node."""
    job = _number(environment, "SLURM_JOB_ID") or 0
    step = _number(environment, "SLURM_STEP_ID") or 0
    return _FIRST_PORT + (7 * job + step) % _N_PORTS


def _check_visible_gpus(environment: Mapping[str, str], local: int) -> None:
    seen = environment.get("CUDA_VISIBLE_DEVICES")
    if seen and len(seen.split(",")) < local:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES is {seen}, but there are {local} ranks on this node, and each rank uses the "
            "GPU whose index is its local rank: run srun with --gpus-per-node instead of --gpus-per-task, and without "
            "--gpu-bind"
        )


def _needed(environment: Mapping[str, str], name: str) -> int:
    if (value := _number(environment, name)) is None:
        raise ConfigError(f"{name} is not set, but Slurm has started several tasks: start the ranks with srun")
    return value


def _number(environment: Mapping[str, str], name: str) -> int | None:
    value = environment.get(name)
    if value is None:
        return None
    if not value.isdecimal():
        raise ConfigError(
            f"{name} is {value!r}, but it must be a number: start the ranks with srun, which sets this variable"
        )
    return int(value)
