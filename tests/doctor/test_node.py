"""Each simulated defect of a node is found and has a fix."""

import errno
import fcntl
import importlib
import os
import resource
import shutil
import stat
import sysconfig
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.hardware.test_device import CPU_ONLY, DEFECTS, WORKING
from tests.helpers.toy_run import write_toy_run
from train.config.load import load_config, read_config
from train.doctor import folders, gpus, inputs, machine, software
from train.doctor.check import Check, run_check
from train.doctor.folders import Folder

GB = 2**30


def only(checks: Iterable[Check]) -> Check:
    (check,) = checks
    assert (check.status in ("slow", "wrong")) <= bool(check.fix)
    return check


def statuses(checks: Iterable[Check]) -> dict[str, str]:
    checks = list(checks)
    assert all(check.fix for check in checks if check.status in ("slow", "wrong"))
    return {check.name: check.status for check in checks}


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


# The compiler


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_compiler_and_headers_are_used() -> None:
    assert statuses(software.check_compiler(gpu=True)) == {"C compiler": "ok", "Python.h": "ok"}


@pytest.mark.parametrize(("gpu", "status"), [(True, "wrong"), (False, "not here")])
def test_no_compiler(monkeypatch: pytest.MonkeyPatch, gpu: bool, status: str) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert statuses(software.check_compiler(gpu=gpu)) == {"C compiler": status, "Python.h": "not here"}


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", program(tmp_path / "cc", "echo 'x.c:1: error: no space left' >&2; exit 1"))
    check, _ = software.check_compiler(gpu=True)
    assert (check.status, check.found) == ("wrong", f"{tmp_path}/cc fails: no space left")
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    check, _ = software.check_compiler(gpu=True)
    assert "No such file" in check.found


def test_no_python_h(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Like gcc, fails only if the header is requested.
    monkeypatch.setenv(
        "CC", program(tmp_path / "cc", "grep -q Python.h $1 && echo 'fatal error: Python.h: No' >&2 && exit 1\nexit 0")
    )
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    _, check = software.check_compiler(gpu=True)
    assert (check.name, check.status, check.found) == ("Python.h", "wrong", f"not in {tmp_path}")
    (tmp_path / "Python.h").touch()
    _, check = software.check_compiler(gpu=True)
    assert check.found == f"not usable in {tmp_path}: Python.h: No"


# Libraries


def test_a_triton_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("libcuda.so.1: cannot open")

    monkeypatch.setattr(importlib, "import_module", fail)
    check = only(software.check_triton(WORKING))
    assert (check.status, "libcuda.so.1" in check.found) == ("wrong", True)


def test_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    assert only(software.check_nccl(CPU_ONLY)).status == "not here"
    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    assert only(software.check_nccl(WORKING)).status == "wrong"


@pytest.mark.parametrize("name", ["megablocks", "flash_attn"])
def test_a_broken_library_is_wrong_on_a_gpu(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    broken = "importing it failed: RuntimeError: 0 active drivers"
    monkeypatch.setattr("train.models.experts.megablocks.why_not_megablocks", lambda *_: broken)

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError(f"attn_config.attn_impl is flash, but {broken}: use auto or sdpa")

    monkeypatch.setattr("train.models.attention.layout.resolve_attn_impl", refuse)
    check = {"megablocks": software.check_megablocks, "flash_attn": software.check_flash_attn}[name]
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: module)
    found = only(check(WORKING))
    assert (found.status, found.found) == ("wrong", broken)
    assert only(check(CPU_ONLY)).status == "not here"
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    assert only(check(WORKING)).status == "not here"


# GPUs


@pytest.mark.parametrize("name", ["old driver", "no driver", "hidden", "not passed to the container"])
def test_a_driver_that_torch_cannot_use(name: str) -> None:
    defect, expected = DEFECTS[name]
    check = only(gpus.check_driver(defect))
    assert check.status == "wrong"
    assert check.found.startswith("this machine has 8 NVIDIA GPUs")
    assert expected in f"{check.found}: {check.fix}"
    assert only(gpus.check_driver(WORKING)).found == "580.65.06 for CUDA 13.0"


HGX = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\x1b[0m
GPU0\t X \tNV18\tNV18\tPIX\t0-55\t0
GPU1\tNV18\t X \tNV18\tSYS\t0-55\t0
GPU2\tNV18\tNV18\t X \tSYS\t56-111\t1
NIC0\tPIX\tSYS\tSYS\t X \t\t

Legend:
  X    = Self
"""


def test_links_of_gpus() -> None:
    pairs = gpus.links(HGX)
    assert pairs == {(0, 1): "NV18", (0, 2): "NV18", (1, 2): "NV18"}
    check = gpus.describe_links(pairs, [], 3)
    assert (check.status, check.found) == ("ok", "3 GPUs: 3 pairs connected by NV18 (NVLink)")
    check = gpus.describe_links(gpus.links(HGX.replace("NV18", "SYS")), [(0, 2)], 3)
    assert (check.status, bool(check.fix)) == ("slow", True)
    assert (
        "3 pairs connected by SYS (PCIe between NUMA nodes); in 1 pairs, the GPUs cannot access each other's "
        in check.found
    )
    assert gpus.describe_links({}, [], 2).found == "2 GPUs: nvidia-smi was not found"


@pytest.mark.parametrize(("free", "names", "status"), [(79, "aa", "ok"), (40, "aa", "wrong"), (79, "ab", "slow")])
def test_busy_or_different_gpus(monkeypatch: pytest.MonkeyPatch, free: int, names: str, status: str) -> None:
    import torch

    properties = [SimpleNamespace(name=name, total_memory=80 * GB) for name in names]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: properties[number])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free * GB, 80 * GB))
    assert only(gpus.check_gpus(replace(WORKING, torch_gpus=2))).status == status


# Memory and limits


@pytest.mark.parametrize(("soft", "world_size", "status"), [(1024, 8, "ok"), (256, 8, "wrong"), (1024, 512, "wrong")])
def test_open_files(monkeypatch: pytest.MonkeyPatch, soft: int, world_size: int, status: str) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, 4096))
    monkeypatch.setattr(machine, "_INFINIBAND", Path("none"))
    assert statuses(machine.check_limits(world_size)) == {"open files": status}


def test_infiniband_needs_locked_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mlx5_0").touch()
    monkeypatch.setattr(machine, "_INFINIBAND", tmp_path)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (65536, 65536))
    assert statuses(machine.check_limits(8)) == {"open files": "ok", "locked memory": "wrong"}


def usage(free: float) -> Any:
    return lambda path: SimpleNamespace(total=100 * GB, used=0, free=int(free))


@pytest.mark.parametrize(
    ("free", "gpu", "status"), [(64 * 2**20, False, "wrong"), (GB / 2, False, "ok"), (GB / 2, True, "wrong")]
)
def test_the_shared_memory_of_docker_is_too_small(
    monkeypatch: pytest.MonkeyPatch, free: float, gpu: bool, status: str
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", usage(free))
    assert only(machine.check_shared_memory(gpu=gpu)).status == status


def test_memory_used_by_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_memory", lambda: 100.0 * GB)
    monkeypatch.setattr(machine, "free_cpu_memory", lambda: 20.0 * GB)
    assert only(machine.check_memory()).status == "slow"


# Folders


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(folders, "_BYTES", 2**20)
    monkeypatch.setattr(folders, "_CHUNK", 2**18)
    return Folder("cache_dir", tmp_path / "not" / "there")


@pytest.mark.subprocess
def test_a_folder_that_is_fast_and_has_locks(folder: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(folders, "_SLOW_MB_S", 0.0)
    assert only(folders.check_lock(folder)).status == "ok"
    assert only(folders.check_speed(folder)).status == "ok"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.subprocess
def test_a_flock_that_does_not_exclude(folder: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    check = only(folders.check_lock(folder))
    assert (check.status, check.found) == ("wrong", "a process can acquire a lock that another process holds")
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    check = only(run_check("cache_dir: locks", lambda: folders.check_lock(folder), 100, "specify another folder"))
    assert (check.status, check.found) == ("wrong", "No locks available")


def test_a_slow_folder(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_SLOW_MB_S", 1e9)
    check = only(folders.check_speed(folder))
    assert (check.status, len(check.numbers)) == ("slow", 2)


def test_a_full_disk(folder: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = read_config(write_toy_run(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", usage(200 * GB))
    assert only(folders.check_free(folder)).status == "ok"
    assert only(folders.check_checkpoints(config, tmp_path / "toy", 2)).status == "ok"
    monkeypatch.setattr(shutil, "disk_usage", usage(100))
    assert only(folders.check_free(folder)).status == "wrong"
    check = only(
        run_check(
            "save_folder: space", lambda: folders.check_checkpoints(config, tmp_path / "toy", 2), 100, "free some"
        )
    )
    assert (check.status, "100 bytes" in check.found) == ("wrong", True)
    config = read_config(str(tmp_path / "config.yaml"), ["save_num_checkpoints_to_keep=3"])
    monkeypatch.setattr(shutil, "disk_usage", usage(2 * 2**20))
    assert only(folders.check_checkpoints(config, tmp_path / "toy", 2)).status == "slow"


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Folder("cache_dir", Path("/proc/none"))
    assert only(run_check("speed", lambda: folders.check_speed(there), 100, "another")).status == "wrong"


# Inputs that a config names


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(inputs, "why_offline", lambda: "no network: https://x cannot be reached (refused)")
    check = only(inputs.check_hub())
    assert (check.status, "HF_HUB_OFFLINE=1" in check.fix) == ("not here", True)
    monkeypatch.setattr("data.sources.hub_commit.why_offline", lambda: "no network")
    path = write_toy_run(tmp_path)
    assert list(inputs.check_hub_data(read_config(path))) == []
    of_hub = ["train_loader.dataset.hf_name=nobody/nothing", "train_loader.dataset.hf_kwargs={data_files: null}"]
    config = read_config(path, of_hub)
    check = only(run_check("dataset", lambda: inputs.check_hub_data(config), 100, "bring it"))
    assert (check.status, check.found.startswith("train_loader.dataset.hf_name is 'nobody/nothing'")) == ("wrong", True)


def test_inputs_of_a_config(tmp_path: Path) -> None:
    loaded = load_config(write_toy_run(tmp_path))
    config, (check,) = inputs.resolve(loaded, 3)
    assert (check.status, "the number of ranks (3)" in check.found) == ("wrong", True)
    assert statuses(inputs.check_tokenizer(config)) == {"tokenizer": "ok"}
    assert statuses(inputs.check_kernels(config, 2, gpu=False)) == {"kernels": "ok"}
    assert inputs.caches(config) == [tmp_path / "cache"]
    (tmp_path / "vocab.tiktoken").unlink()
    check = only(run_check("tokenizer", lambda: inputs.check_tokenizer(config), 100, "bring it"))
    assert (check.status, check.found.startswith("tokenizer.kwargs.vocab_file")) == ("wrong", True)
