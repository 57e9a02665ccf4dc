"""Run all checks: the first rank of each node checks the node, all ranks check the links between them, and rank 0 shows
the results."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from data.base.errors import ConfigError, os_errors_named
from data.config.dataset import DatasetConfig
from data.secrets.redaction import is_address
from train.checkpoint.save_folder import local_folder, run_name_of
from train.config.load import LoadedConfig
from train.config.schema import TrainConfig
from train.doctor import folders, gpus, inputs, machine, ranks, software
from train.doctor.check import Check, run_check
from train.doctor.folders import Folder
from train.doctor.ranks import Place, RankExchange
from train.doctor.report import is_wrong, merged, table, write_json
from train.hardware.device import Machine, look

_WIDTH = 160
"""Width of a table that is written to a file."""
_INSTALL = "install the packages of requirements.lock (docs/install.md)"
_GPU = "check the output of nvidia-smi"
_FOLDER = "specify another folder"
_SYSTEM = "check /proc and the cgroups of the node"
_NETWORK = (
    "check the output of the other ranks; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME select the network interface, and "
    "a firewall must not block this interface"
)
_MOST_CHECKS = 10
"""The time limit for the results of a node is this number times the time limit of a check."""

CheckFunction = Callable[[], Iterable[Check]]


def examine(loaded: LoadedConfig | None, place: Place, *, seconds: float, file: Path | None) -> bool:
    """Run all checks, show the results on rank 0, and return whether all checks passed. Ranks other than 0 always
    return True, because only rank 0 has the results. Every rank must call this.

    seconds: time limit of each check, and of each wait for another rank. Raises ConfigError if rank 0 cannot be reached
    or the JSON file cannot be written.
    """
    if file is not None and place.rank == 0:
        with os_errors_named(f"--json {file}", "written", hint="specify another file"):
            file.parent.mkdir(parents=True, exist_ok=True)
    exchange = RankExchange(place, seconds)
    hosts = exchange.gather("host", place.host, range(place.world_size), seconds)
    config, checks = (None, []) if loaded is None else inputs.resolve(loaded, place.world_size)
    here = _inspect_machine(config, seconds)
    checks = [*checks, *_node_checks(config, place, here, seconds)] if place.is_first_of_node else []
    first = exchange.gather("first", place.is_first_of_node, hosts, _MOST_CHECKS * seconds)
    checks += _rank_checks(exchange, config, hosts, first, seconds, gpu=here is not None and here.torch_gpus > 0)
    exchange.publish("checks", [asdict(check) for check in checks])
    if place.rank != 0:
        return True
    heard = exchange.collect("checks", list(hosts), _MOST_CHECKS * seconds)
    return _report(heard, hosts, first, place.world_size, file)


def _rank_checks(
    exchange: RankExchange,
    config: TrainConfig | None,
    hosts: Mapping[int, str],
    first: Mapping[int, bool],
    seconds: float,
    *,
    gpu: bool,
) -> list[Check]:
    """Run the checks that need several ranks. Every rank must call this. first: for each rank that responded, whether
    it is the first rank of its node."""
    checks: list[Check] = []
    nodes = [rank for rank, is_first in sorted(first.items()) if is_first]
    if len(nodes) > 1 and exchange.place.is_first_of_node:
        shared = partial(ranks.check_shared, exchange, nodes, _folders(config), seconds)
        checks += run_check("nodes", shared, 2 * seconds, _FOLDER)
    if 1 < exchange.place.world_size == len(first):
        links = partial(_between_ranks, exchange, hosts, seconds, gpu=gpu)
        checks += run_check("links between ranks", links, 2 * seconds, _NETWORK)
    return checks


def _report(
    heard: Mapping[int, list[dict[str, Any]]],
    hosts: Mapping[int, str],
    first: Mapping[int, bool],
    world_size: int,
    file: Path | None,
) -> bool:
    of_nodes: dict[str, list[Check]] = {}
    for rank, checks in sorted(heard.items()):
        of_node = of_nodes.setdefault(_node_of(rank, hosts, first), [])
        of_node += [Check(**{**check, "numbers": tuple(check["numbers"])}) for check in checks]
    of_nodes[_node_of(0, hosts, first)].append(ranks.check_ranks(hosts, heard, world_size))
    rows = merged(of_nodes)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
    console.print(table(rows, len(of_nodes)))
    if file is not None:
        with os_errors_named(f"--json {file}", "written", hint="specify another file"):
            write_json(file, rows, world_size)
    return not is_wrong(rows)


def _node_of(rank: int, hosts: Mapping[int, str], first: Mapping[int, bool]) -> str:
    """Return the name of the rank's node: its host name, followed by the node's first rank if several nodes have the
    same host name."""
    firsts = [number for number, is_first in sorted(first.items()) if is_first and hosts[number] == hosts[rank]]
    if len(firsts) < 2:
        return hosts[rank]
    return f"{hosts[rank]} (rank {max((number for number in firsts if number <= rank), default=rank)})"


def _inspect_machine(config: TrainConfig | None, seconds: float) -> Machine | None:
    """Return a description of this machine, without its GPUs if the config does not use them. Returns None if torch
    cannot be imported; another check then reports the error."""
    found: list[Machine] = []

    def work() -> list[Check]:
        found.append(look())
        return []

    run_check("torch", work, seconds, _INSTALL)
    if config is not None and config.device == "cpu":
        found = [replace(each, torch_gpus=0, nvidia_gpus=0, amd_gpus=0) for each in found]
    return found[0] if found else None


def _node_checks(config: TrainConfig | None, place: Place, here: Machine | None, seconds: float) -> list[Check]:
    checks: list[Check] = []
    for name, work, fix in _check_functions(config, place, here):
        checks += run_check(name, work, seconds, fix)
    return checks


def _check_functions(
    config: TrainConfig | None, place: Place, here: Machine | None
) -> Iterator[tuple[str, CheckFunction, str]]:
    """Yield the name of each check, its function, and the fix to suggest if a library raises an error in the check."""
    gpu, world_size = here is not None and here.torch_gpus > 0, place.world_size
    if here is None:
        yield "torch", _import_torch, _INSTALL
        here = Machine(environment={}, torch_version="not usable")
    else:
        yield "torch", partial(software.check_torch, here), _INSTALL
    yield "driver", partial(gpus.check_driver, here), _GPU
    yield "GPUs", partial(gpus.check_gpus, here), _GPU
    yield "GPU links", partial(gpus.check_links, here), _GPU
    yield "NCCL", partial(software.check_nccl, here), _INSTALL
    yield "C compiler", partial(software.check_compiler, gpu=gpu), "install gcc, or set CC"
    yield "Triton", partial(software.check_triton, here), _INSTALL
    yield "MegaBlocks", partial(software.check_megablocks, here), "rebuild MegaBlocks (docs/megablocks.md)"
    yield "flash-attn", partial(software.check_flash_attn, here), "reinstall flash-attn for this version of torch"
    yield "memory", machine.check_memory, _SYSTEM
    yield "/dev/shm", partial(machine.check_shared_memory, gpu=gpu), _SYSTEM
    yield "open files", partial(machine.check_limits, world_size), _SYSTEM
    yield "hub", inputs.check_hub, _INSTALL
    if config is not None:
        device = "gpu" if gpu else "cpu"
        yield "tokenizer", partial(inputs.check_tokenizer, config), "copy the tokenizer's files to every node"
        yield "dataset", partial(inputs.check_hub_data, config), "copy the hub's cache to every node"
        yield "kernels", partial(inputs.check_kernels, config, world_size, gpu=gpu), "see docs/install.md"
        yield (
            "memory of a rank",
            partial(machine.check_fits, config, world_size, device),
            "find settings that fit into memory (scripts/plan.py)",
        )
        yield "save_folder: store", partial(inputs.check_store, config), "see docs/checkpoints.md"
        if config.save_folder is not None:
            yield "save_folder: space", partial(_checkpoints, config, world_size), _FOLDER
    for folder in _folders(config):
        if folder.key != "save_folder" or config is None:
            yield f"{folder.key}: space", partial(folders.check_free, folder), _FOLDER
        yield f"{folder.key}: speed", partial(folders.check_speed, folder), _FOLDER
        yield f"{folder.key}: locks", partial(folders.check_lock, folder), _FOLDER


def _import_torch() -> Iterator[Check]:
    import torch

    yield Check(
        name="torch",
        status="wrong",
        found=f"torch {torch.__version__} is installed, but its check for GPUs failed",
        fix=_INSTALL,
    )


def _checkpoints(config: TrainConfig, world_size: int) -> Iterable[Check]:
    folder = local_folder(config, run_name_of(config))
    assert folder is not None
    return folders.check_checkpoints(config, folder, world_size)


def _folders(config: TrainConfig | None) -> list[Folder]:
    """Return the save folder and the caches; without a config, the folders of the shipped configs."""
    if config is None:
        default = DatasetConfig.__dataclass_fields__["cache_dir"].default
        return [Folder("save_folder", Path("runs")), Folder("cache_dir", Path(default))]
    caches, named = inputs.caches(config), list[Folder]()
    with suppress(ConfigError):  # the check of free space reports this error
        if (save_folder := local_folder(config, run_name_of(config))) is not None:
            staged = config.save_folder is not None and is_address(config.save_folder)
            named.append(Folder("save_staging_folder" if staged else "save_folder", save_folder))
    return [*named, *(Folder("cache_dir" if len(caches) == 1 else f"cache_dir {path}", path) for path in caches)]


def _between_ranks(exchange: RankExchange, hosts: Mapping[int, str], seconds: float, *, gpu: bool) -> Iterator[Check]:
    """Measure the links. Every rank must call this; rank 0 yields the results of all ranks."""
    import torch
    import torch.distributed as dist

    from train.doctor.collectives import check_collectives

    place, device = exchange.place, torch.device("cpu")
    if gpu:
        # By default, torch ends the process when NCCL hangs, so the table would not be shown.
        os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] = "0"
        device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if gpu else "gloo",
        store=exchange.store,
        rank=place.rank,
        world_size=place.world_size,
        timeout=timedelta(seconds=seconds),
    )
    try:
        for check in (*ranks.check_clocks(hosts), *check_collectives(device)):
            if place.rank == 0:
                yield check
    finally:
        dist.destroy_process_group()
