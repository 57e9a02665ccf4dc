"""The device of a run, and the reason why torch cannot use a GPU of the machine.

torch and Composer silently use the CPU if they find no working GPU. In Dropless, a GPU that torch cannot use is an
error: a run uses the CPU only if there is no GPU, or if the CPU was chosen. torch is imported only when necessary.
"""

import ctypes
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.base.errors import ConfigError

Device = Literal["cpu", "gpu"]
"""The types of devices, by the names that Composer uses."""

_ON_CPU = "or choose the CPU: device=cpu (in scripts: --device cpu)"
_INSTALL = "uv pip install --torch-backend"
_LEAST_DRIVER = {12: 525, 13: 580}
"""The minimum driver version by major version of CUDA (NVIDIA's CUDA Compatibility guide). This driver version is
sufficient for wheels built for any CUDA version with this major version."""
_PCI_GPUS = {"nvidia": ("0x10de", "0x03"), "amd": ("0x1002", "0x12")}
"""Vendor id and class prefix of the PCI devices that count as GPUs: for NVIDIA, display controllers; for AMD, only
accelerators, because many AMD processors include a graphics unit that no torch wheel supports."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The facts that determine whether torch can use a GPU. The fields `torch_*` and `capability` are read from torch.
    All other fields are determined without torch."""

    nvidia_gpus: int = 0
    """Number of NVIDIA GPUs that have a device file or, if there are no device files, number of NVIDIA GPUs on the PCI
    bus. The PCI bus is also visible in a container."""
    amd_gpus: int = 0
    device_files: int = 0
    """Number of files /dev/nvidia0 and so on. In a container, only the device files that were passed to the container
    exist."""
    driver: str | None = None
    """Version of the loaded NVIDIA driver, such as 570.86.15."""
    driver_cuda: tuple[int, int] | None = None
    """The newest CUDA version that the driver supports, such as (12, 8)."""
    environment: Mapping[str, str]
    torch_version: str
    torch_cuda: str | None = None
    torch_hip: str | None = None
    torch_archs: tuple[str, ...] = ()
    """The GPU architectures for which the torch wheel is compiled, such as sm_90."""
    torch_gpus: int = 0
    torch_error: str = ""
    """torch's error message if torch finds no GPU."""
    capability: tuple[int, int] | None = None
    """Compute capability of this rank's GPU."""

    def __str__(self) -> str:
        counts = {"NVIDIA": self.nvidia_gpus, "AMD": self.amd_gpus}
        gpus = [f"{n} {vendor} GPU{'s' if n > 1 else ''}" for vendor, n in counts.items() if n]
        driver = f"driver {self.driver}" if self.driver else "no driver is loaded"
        if self.driver_cuda is not None:
            driver = f"driver{f' {self.driver}' if self.driver else ''} for CUDA {_dotted(self.driver_cuda)}"
        return f"{' and '.join(gpus) or 'a GPU'}{f' ({driver})' if self.nvidia_gpus else ''}"

    @property
    def wheel(self) -> str:
        built = "CPU only"
        if self.torch_cuda or self.torch_hip:
            built = f"CUDA {self.torch_cuda}" if self.torch_cuda else f"ROCm {self.torch_hip}"
        return f"torch {self.torch_version} (built for {built})"


def choose_device(wanted: Device | None) -> Device:
    """Return `gpu` if there is a GPU, otherwise `cpu`. If wanted is `cpu`, hide all GPUs from this process and its
    children.

    Raises ConfigError if torch cannot use the machine's GPU and wanted is not cpu, and if gpu is wanted but there is
    none.
    """
    # torch's warnings are not needed: either ConfigError reports the same problem, or the CPU was chosen.
    warnings.filterwarnings("ignore", message="CUDA initialization")
    if wanted == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return "cpu"
    machine = look()
    if defect := why_no_gpu(machine):
        raise ConfigError(defect)
    if not machine.torch_gpus and wanted == "gpu":
        vendors, files = ("NVIDIA or AMD", " or /dev/kfd") if machine.torch_hip else ("NVIDIA", "")
        raise ConfigError(
            f"is gpu, but this machine has no GPU (no {vendors} GPU on its PCI bus, no /dev/nvidia0{files}): "
            f"start the run on a machine with a GPU, {_ON_CPU}",
            key="device",
        )
    return "gpu" if machine.torch_gpus else "cpu"


def why_no_gpu(machine: Machine) -> str | None:
    """The reason why a run cannot use the machine's GPUs, and how to fix it. None if the run can use them, or if there
    are no GPUs."""
    if machine.torch_gpus:
        ranks = int(machine.environment.get("LOCAL_WORLD_SIZE", "1"))
        if ranks > machine.torch_gpus:
            seen = f"torch finds {machine.torch_gpus} GPU{'s' if machine.torch_gpus > 1 else ''}"
            fix = f"use composer -n {machine.torch_gpus}"
            if machine.environment.get("CUDA_VISIBLE_DEVICES"):
                # Slurm may bind each task to its own GPU, so that each rank can use only one GPU.
                fix += ", or make all GPUs visible to every rank (srun --gpu-bind=none)"
            return f"this machine runs {ranks} ranks, but {seen}: {fix}, {_ON_CPU}"
        cause = _unsupported(machine)
    elif machine.nvidia_gpus or machine.amd_gpus:
        cause = _hidden(machine) or _unusable_wheel(machine) or _no_driver(machine) or _torch_error(machine)
    else:
        cause = None
    it = "them" if machine.nvidia_gpus + machine.amd_gpus > 1 else "it"
    return f"this machine has {machine}, but {machine.wheel} cannot use {it}: {cause}, {_ON_CPU}" if cause else None


def _hidden(machine: Machine) -> str | None:
    count = machine.device_files or machine.nvidia_gpus or machine.amd_gpus
    rocm = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES") if machine.torch_hip else ()
    for name in ("CUDA_VISIBLE_DEVICES", *rocm):
        value = machine.environment.get(name)
        # CUDA uses only the GPUs before the first invalid number.
        first = value.split(",")[0].strip() if value is not None else "0"
        if first in ("", "-1", "NoDevFiles"):
            return f"{name} is {value!r}, which hides every GPU: unset it"
        if first.isdecimal() and int(first) >= count:
            return f"{name} is {value!r}, but the GPUs are 0 to {count - 1}: unset or correct it"
    return None


def _unusable_wheel(machine: Machine) -> str | None:
    install = f"install another wheel into a new environment ({_INSTALL} auto -e .)"
    if machine.torch_cuda is None and machine.torch_hip is None:
        return install
    if (machine.torch_cuda is None and not machine.amd_gpus) or (machine.torch_hip is None and not machine.nvidia_gpus):
        return f"this wheel is for other GPUs: {install}"
    needed = int(machine.torch_cuda.split(".")[0]) if machine.torch_cuda else 0
    if machine.driver_cuda is not None and machine.driver_cuda[0] < needed:
        least = f" ({_LEAST_DRIVER[needed]} or newer)" if needed in _LEAST_DRIVER else ""
        return f"this wheel needs a driver for CUDA {needed}{least}: update the driver, {install}"
    return None


def _no_driver(machine: Machine) -> str | None:
    if not machine.torch_cuda:
        return None
    if machine.driver is None and machine.driver_cuda is None:
        return "no NVIDIA driver is loaded: install the driver, or load its kernel module (modprobe nvidia)"
    if not machine.device_files:
        value = machine.environment.get("NVIDIA_VISIBLE_DEVICES")
        named = f" (NVIDIA_VISIBLE_DEVICES is {value!r})" if value is not None else ""
        return (
            f"there is no device file /dev/nvidia0{named}: pass the GPUs to the container (docker run --gpus all; in "
            "Kubernetes, set a limit for nvidia.com/gpu)"
        )
    if machine.driver_cuda is None:
        return (
            "the driver's library libcuda.so.1 is not found: install the driver, or make the library available "
            "in the container (NVIDIA_DRIVER_CAPABILITIES=compute,utility)"
        )
    return None


def _torch_error(machine: Machine) -> str:
    value = machine.environment.get("CUDA_VISIBLE_DEVICES")
    named = f" (CUDA_VISIBLE_DEVICES is {value!r})" if value is not None else ""
    return f"torch reports {machine.torch_error!r}{named}: check the output of nvidia-smi"


def _unsupported(machine: Machine) -> str | None:
    """Why the wheel does not support this rank's GPU, or None. For an unsupported GPU, torch only logs a warning, and
    the first kernel that is launched fails."""
    if machine.capability is None or not machine.torch_archs:
        return None
    if any(_runs_on(arch, machine.capability) for arch in machine.torch_archs):
        return None
    return (
        f"its compute capability is {_dotted(machine.capability)}, but the wheel is compiled for "
        f"{', '.join(machine.torch_archs)}: install another wheel into a new environment ({_INSTALL} cu126 -e . for "
        "older GPUs)"
    )


def _runs_on(arch: str, capability: tuple[int, int]) -> bool:
    """Whether code for this architecture runs on a GPU. Machine code (sm_86) runs on GPUs with the same major version
    and the same or a higher minor version. PTX (compute_80) is compiled at load time, for GPUs with the same or any
    later version."""
    found = re.match(r"(sm|compute)_(\d+)(\d)", arch)
    if found is None:
        return True
    of = int(found[2]), int(found[3])
    return of <= capability and (found[1] == "compute" or of[0] == capability[0])


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def look(root: Path = Path("/")) -> Machine:
    """Collect the facts about this machine from Linux's files below `root` and from torch."""
    pci = _pci_gpus(root / "sys/bus/pci/devices")
    files = len(list((root / "dev").glob("nvidia[0-9]*")))
    driver_cuda = _driver_cuda()
    # In the Windows Subsystem for Linux, this file exists instead of /dev/nvidia0.
    if (root / "dev/dxg").exists() and driver_cuda is not None:
        files = max(files, 1)
    facts = _torch_facts(int(os.environ.get("LOCAL_RANK", "0")))
    amd = pci["amd"]
    if facts["torch_hip"] and (root / "dev/kfd").exists():
        amd = max(amd, 1)
    return Machine(
        nvidia_gpus=files or pci["nvidia"],
        amd_gpus=amd,
        device_files=files,
        driver=_driver(root / "proc/driver/nvidia/version"),
        driver_cuda=driver_cuda,
        environment=dict(os.environ),
        **facts,
    )


def _pci_gpus(folder: Path) -> dict[str, int]:
    found = dict.fromkeys(_PCI_GPUS, 0)
    for device in folder.iterdir() if folder.is_dir() else ():
        vendor, kind = _text(device / "vendor"), _text(device / "class")
        for name, (of, begins) in _PCI_GPUS.items():
            found[name] += vendor == of and kind.startswith(begins)
    return found


def _driver(file: Path) -> str | None:
    version = re.search(r"\d+\.\d+(\.\d+)?", _text(file))
    return version[0] if version else None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _driver_cuda() -> tuple[int, int] | None:
    """The CUDA version that the driver's library reports (12080 means 12.8). None if there is no such library."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)):
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def _torch_facts(local_rank: int) -> dict[str, Any]:
    import torch

    facts: dict[str, Any] = {
        "torch_version": str(torch.__version__),
        "torch_cuda": torch.version.cuda,
        "torch_hip": torch.version.hip,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.cuda.init()
            count = torch.cuda.device_count()
            capability = torch.cuda.get_device_capability(local_rank % count)
        except Exception as error:  # RuntimeError, AssertionError (no CUDA in the wheel), DeferredCudaCallError
            return facts | {"torch_error": " ".join(str(error).split())}
    archs = tuple(torch.cuda.get_arch_list()) if torch.version.cuda else ()
    return facts | {"torch_gpus": count, "torch_archs": archs, "capability": capability}
