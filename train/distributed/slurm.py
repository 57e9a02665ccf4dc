"""Ranks that `srun` starts: the variables of Slurm as those that torch and Composer read. Imports no torch.

Slurm's variables: https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES.
"""

import re
from collections.abc import Mapping

from data.base.errors import ConfigError

_FIRST_PORT, _N_PORTS = 12000, 16000
"""Below those that Linux gives to connections (32768)."""


def ranks_of_srun(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE and so on of a task of a step with several; empty where a launcher has set them, and where Slurm
    has started one process.

    Raises ConfigError of a process that stands for several tasks, but is none of them: as independent runs they would
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
            f"SLURM_NTASKS is {n_tasks}, but srun has not started this process: write `srun python train.py ...` for "
            f"{n_tasks} ranks, or `env -u SLURM_NTASKS python train.py ...` for one"
        )
    rank, node = _needed(environment, "SLURM_PROCID"), _number(environment, "SLURM_NODEID") or 0
    local_rank, local = _needed(environment, "SLURM_LOCALID"), _tasks_of_node(environment, node, n_tasks)
    _refuse_one_gpu_each(environment, local)
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
    """Whether srun, and no launcher, has started this rank."""
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
    """Of `4(x2),3`, which is 4, 4, 3."""
    expanded: list[int] = []
    for part in counts.split(","):
        if (found := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)) is None:
            raise ConfigError(f"{name} is {counts!r}, but it must be such as 4(x2),3")
        expanded += [int(found[1])] * int(found[2] or 1)
    if node >= len(expanded):
        raise ConfigError(f"SLURM_NODEID is {node}, but {name} {counts} has {len(expanded)} nodes")
    return expanded[node]


def _first_node(environment: Mapping[str, str]) -> str:
    """That of task 0. `gpu[03-05,9],login` begins with gpu03."""
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
    """The same for all tasks of a step, and another one for other steps of the node."""
    job = _number(environment, "SLURM_JOB_ID") or 0
    step = _number(environment, "SLURM_STEP_ID") or 0
    return _FIRST_PORT + (7 * job + step) % _N_PORTS


def _refuse_one_gpu_each(environment: Mapping[str, str], local: int) -> None:
    seen = environment.get("CUDA_VISIBLE_DEVICES")
    if seen and len(seen.split(",")) < local:
        raise ConfigError(
            f"CUDA_VISIBLE_DEVICES is {seen}, but {local} ranks are on this node, which each take the GPU of their "
            "number: start srun with --gpus-per-node in the place of --gpus-per-task, and without --gpu-bind"
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
        raise ConfigError(f"{name} is {value!r}, but it must be a number: srun sets it")
    return int(value)
