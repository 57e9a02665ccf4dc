"""Machines whose GPU torch cannot use: the error names driver, wheel and fix, and the CPU is not used silently."""

import os
import warnings
from dataclasses import replace
from pathlib import Path

import composer  # noqa: F401 - its import has warnings, which tests would otherwise turn into errors
import pytest
import torch

from data.base.errors import ConfigError
from tests.helpers.toy_run import write_toy_run
from train import main
from train.hardware import device
from train.hardware.device import Machine, choose_device, look, why_no_gpu

DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue Mar 5 22:23:56 UTC 2024\nGCC version: 12.3.0\n"
NODE = Machine(
    nvidia_gpus=8,
    device_files=8,
    driver="580.65.06",
    driver_cuda=(13, 0),
    environment={},
    torch_version="2.15.0+cu132",
    torch_cuda="13.2",
    torch_error="No CUDA GPUs are available",
)
"""A node with eight GPUs, none of which torch can use."""
WORKING = replace(NODE, torch_gpus=8, torch_archs=("sm_75", "sm_90", "compute_90"), capability=(9, 0))
CPU_ONLY = Machine(environment={}, torch_version="2.15.0+cpu", torch_error="Torch not compiled with CUDA enabled")

DEFECTS = {
    "old driver": (
        replace(NODE, driver="550.54.15", driver_cuda=(12, 4)),
        (
            "8 NVIDIA GPUs (driver 550.54.15 for CUDA 12.4), but torch 2.15.0+cu132 (built for CUDA 13.2) cannot use "
            "them: this wheel needs a driver for CUDA 13 (580 or newer): update the driver, install another wheel into "
            "a new environment (uv pip install --torch-backend auto -e .), or choose the CPU: device=cpu"
        ),
    ),
    "CPU wheel": (
        replace(CPU_ONLY, nvidia_gpus=1, device_files=1, driver="580.65.06", driver_cuda=(13, 0)),
        "torch 2.15.0+cpu (built for CPU only) cannot use it: install another wheel into a new environment (uv",
    ),
    "another vendor's wheel": (
        replace(NODE, nvidia_gpus=0, device_files=0, amd_gpus=8, driver=None, driver_cuda=None),
        "8 AMD GPUs, but torch 2.15.0+cu132 (built for CUDA 13.2) cannot use them: this wheel is for other GPUs",
    ),
    "hidden": (
        replace(NODE, environment={"CUDA_VISIBLE_DEVICES": ""}),
        "CUDA_VISIBLE_DEVICES is '', which hides every GPU: unset it, or choose the CPU: device=cpu",
    ),
    "hidden by -1": (replace(NODE, environment={"CUDA_VISIBLE_DEVICES": "-1"}), "is '-1', which hides every GPU"),
    "a GPU that does not exist": (
        replace(NODE, environment={"CUDA_VISIBLE_DEVICES": "8,0"}),
        "CUDA_VISIBLE_DEVICES is '8,0', but the GPUs are 0 to 7: unset or correct it",
    ),
    "no driver": (replace(NODE, driver=None, driver_cuda=None, device_files=0), "no NVIDIA driver is loaded: install"),
    "not passed to the container": (
        replace(NODE, driver_cuda=None, device_files=0, environment={"NVIDIA_VISIBLE_DEVICES": "void"}),
        "no device file /dev/nvidia0 (NVIDIA_VISIBLE_DEVICES is 'void'): pass the GPUs to the container",
    ),
    "no library": (replace(NODE, driver_cuda=None), "the driver's library libcuda.so.1 is not found"),
    "torch's own error": (
        replace(NODE, environment={"CUDA_VISIBLE_DEVICES": "GPU-8a"}),
        "torch reports 'No CUDA GPUs are available' (CUDA_VISIBLE_DEVICES is 'GPU-8a'): check the output of nvidia-smi",
    ),
    "a GPU too old for the wheel": (
        replace(WORKING, capability=(7, 0)),
        "compute capability is 7.0, but the wheel is compiled for sm_75, sm_90, compute_90: install another",
    ),
    "more ranks than GPUs": (
        replace(WORKING, torch_gpus=1, environment={"LOCAL_WORLD_SIZE": "2"}),
        "runs 2 ranks, but torch finds 1 GPU: use composer -n 1, or choose the CPU: device=cpu",
    ),
    "one GPU bound to each of Slurm's tasks": (
        replace(WORKING, torch_gpus=1, environment={"LOCAL_WORLD_SIZE": "8", "CUDA_VISIBLE_DEVICES": "3"}),
        "finds 1 GPU: use composer -n 1, or make all GPUs visible to every rank (srun --gpu-bind=none), ",
    ),
}


@pytest.mark.parametrize("case", DEFECTS)
def test_a_gpu_that_torch_cannot_use_is_explained(case: str) -> None:
    machine, expected = DEFECTS[case]
    message = why_no_gpu(machine)
    assert message is not None
    assert expected in message
    assert "\n" not in message


# The last two: machine code within a major version, and PTX, which is compiled at load time, run on later GPUs.
@pytest.mark.parametrize(
    "machine", [CPU_ONLY, WORKING, replace(WORKING, capability=(7, 9)), replace(WORKING, capability=(12, 0))]
)
def test_working_gpus_and_machines_without_gpus_are_accepted(machine: Machine) -> None:
    assert why_no_gpu(machine) is None


def test_an_older_driver_of_the_same_major_version_is_not_blamed() -> None:
    assert "needs a driver" not in (why_no_gpu(NODE) or "needs a driver")


@pytest.fixture
def of_this_machine(monkeypatch: pytest.MonkeyPatch):
    """A function that replaces this machine by another one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # restored afterwards
    monkeypatch.setattr(device, "look", lambda: pytest.fail("the GPU was not requested"))
    return lambda machine: monkeypatch.setattr(device, "look", lambda: machine)


def test_the_cpu_may_be_chosen_everywhere_and_hides_the_gpus(of_this_machine) -> None:
    assert choose_device("cpu") == "cpu"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_null_takes_the_gpu_where_there_is_one(of_this_machine) -> None:
    of_this_machine(WORKING)
    assert (choose_device(None), choose_device("gpu")) == ("gpu", "gpu")
    of_this_machine(CPU_ONLY)
    assert choose_device(None) == "cpu"
    with pytest.raises(
        ConfigError, match=r"device is gpu, but this machine has no GPU .* or choose the CPU: device=cpu"
    ):
        choose_device("gpu")
    of_this_machine(replace(CPU_ONLY, torch_hip="6.4"))
    with pytest.raises(ConfigError, match=r"\(no NVIDIA or AMD GPU on its PCI bus, no /dev/nvidia0 or /dev/kfd\)"):
        choose_device("gpu")
    of_this_machine(NODE)
    for wanted in (None, "gpu"):
        with pytest.raises(ConfigError, match="cannot use them"):
            choose_device(wanted)


def write_node(root: Path, driver: str | None) -> None:
    """The files of Linux on a node with two NVIDIA GPUs, one of them in the container, a switch and an AMD
    processor."""
    devices = [("0x10de", "0x030200"), ("0x10de", "0x030200"), ("0x10de", "0x068000"), ("0x1002", "0x030000")]
    for number, (vendor, kind) in enumerate(devices):
        folder = root / f"sys/bus/pci/devices/0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    (root / "dev").mkdir()
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
        (root / "dev" / name).touch()
    if driver is not None:
        (root / "proc/driver/nvidia").mkdir(parents=True)
        (root / "proc/driver/nvidia/version").write_text(DRIVER.format(driver))


def too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces torch's wheel by one for which the driver is too old."""

    def init() -> None:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=2)
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040).")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch, "__version__", "2.15.0+cu132")
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(device, "_driver_cuda", lambda: (12, 4))


def test_a_gpu_is_found_in_the_files_of_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_node(tmp_path, "550.54.15")
    too_old(monkeypatch)
    machine = look(tmp_path)
    assert (machine.nvidia_gpus, machine.amd_gpus, machine.device_files) == (1, 0, 1)
    assert (machine.driver, machine.driver_cuda, machine.torch_gpus) == ("550.54.15", (12, 4), 0)
    assert machine.torch_error == "The NVIDIA driver on your system is too old (found version 12040)."
    (tmp_path / "dev/nvidia0").unlink()
    assert (look(tmp_path).nvidia_gpus, look(tmp_path).device_files) == (2, 0)


@pytest.mark.filterwarnings("error")
def test_a_driver_that_is_too_old_ends_a_run_before_its_data_is_opened(tmp_path, monkeypatch, capsys) -> None:
    write_node(tmp_path / "root", "550.54.15")
    too_old(monkeypatch)
    monkeypatch.setattr(device, "look", lambda: look(tmp_path / "root"))
    monkeypatch.setattr("train.run.inputs.open_inputs", lambda *_, **__: pytest.fail("the data was opened"))
    assert main.main([write_toy_run(tmp_path), "device=null"]) == 2
    error = capsys.readouterr().err
    for part in ("driver 550.54.15", "torch 2.15.0+cu132", "--torch-backend auto", "device=cpu"):
        assert part in error
    assert error.startswith("error: this machine has 1 NVIDIA GPU ")
    assert error.count("\n") == 1


def test_without_a_driver_its_library_knows_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(device.ctypes, "CDLL", no_library)
    assert device._driver_cuda() is None


def test_checking_this_machine_prints_nothing(recwarn: pytest.WarningsRecorder, capfd) -> None:
    machine = look()
    assert machine.torch_version == torch.__version__
    assert (machine.torch_gpus > 0) == torch.cuda.is_available()
    assert [str(warning.message) for warning in recwarn] == []
    assert capfd.readouterr() == ("", "")


def test_the_quickstart_has_a_rank_for_each_gpu_and_at_most_two(of_this_machine, monkeypatch) -> None:
    from train.run.quickstart import n_ranks

    assert n_ranks("cpu") == 2
    of_this_machine(WORKING)
    for gpus, ranks in ((1, 1), (8, 2)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert n_ranks(choose_device(None)) == ranks
