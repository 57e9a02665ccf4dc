"""The GPUs of a node, their driver, and the links between them."""

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping

from data.base.sizes import format_bytes
from train.doctor.check import Check, slow_if
from train.hardware.device import Machine, why_no_gpu

_FREE = 0.9
"""If less than this share of a GPU's memory is free, the check reports that another process uses the GPU."""
_TOPOLOGY_SECONDS = 30
_LINKS = {
    "NV": "NVLink",
    "PIX": "one PCIe switch",
    "PXB": "several PCIe switches",
    "PHB": "PCIe through the CPU",
    "NODE": "PCIe within a NUMA node",
    "SYS": "PCIe between NUMA nodes",
}
"""The link names in the legend of `nvidia-smi topo -m`. NV18 means 18 NVLinks."""
_SLOW_LINKS = {"PHB", "NODE", "SYS"}


def check_driver(machine: Machine) -> Iterator[Check]:
    if (defect := why_no_gpu(machine)) is not None:
        found, _, fix = defect.partition(": ")
        yield Check(name="driver", status="wrong", found=found, fix=fix)
    elif machine.torch_gpus:
        cuda = f" for CUDA {'.'.join(map(str, machine.driver_cuda))}" if machine.driver_cuda else ""
        yield Check(name="driver", status="ok", found=f"{machine.driver or 'loaded'}{cuda}")
    else:
        yield Check(name="driver", status="not here", found="no NVIDIA driver, no GPU")


def check_gpus(machine: Machine) -> Iterator[Check]:
    """Check whether all GPUs are of the same kind, and whether their memory is free."""
    if not machine.torch_gpus:
        found = f"{machine}, not usable" if machine.nvidia_gpus or machine.amd_gpus else "no GPU that a run would use"
        yield Check(name="GPUs", status="not here", found=found)
        return
    import torch

    kinds, busy = Counter[str](), list[str]()
    for number in range(machine.torch_gpus):
        properties = torch.cuda.get_device_properties(number)
        kinds[f"{properties.name} ({format_bytes(properties.total_memory, down=True)})"] += 1
        free, total = torch.cuda.mem_get_info(number)
        if free < _FREE * total:
            busy.append(f"GPU {number} has {format_bytes(free, down=True)} free")
    found = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    if len(kinds) > 1:
        fix = "use GPUs of the same model, because all ranks wait for the slowest GPU"
        yield Check(name="GPUs", status="slow", found=found, fix=fix)
    elif busy:
        fix = "end the processes that nvidia-smi shows"
        yield Check(name="GPUs", status="wrong", found=f"{found}; {', '.join(busy)}", fix=fix)
    else:
        yield Check(name="GPUs", status="ok", found=found)


def check_links(machine: Machine) -> Iterator[Check]:
    """Check the links between GPUs that nvidia-smi reports, and whether the GPUs can access each other's memory."""
    if machine.torch_gpus < 2:
        yield Check(name="GPU links", status="not here", found="one GPU" if machine.torch_gpus else "no GPU")
        return
    import torch

    gpus = range(machine.torch_gpus)
    apart = [(a, b) for a in gpus for b in gpus if a < b and not torch.cuda.can_device_access_peer(a, b)]
    yield describe_links(links(_topology()), apart, machine.torch_gpus)


def _topology() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    command = [program, "topo", "-m"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TOPOLOGY_SECONDS, check=False)
    return done.stdout


def links(topology: str) -> dict[tuple[int, int], str]:
    """Parse the output of `nvidia-smi topo -m` into the link of each pair of GPUs: NV18, PIX, ..."""
    rows = [line.split() for line in re.sub(r"\x1b\[[\d;]*m", "", topology).splitlines()]
    named = {int(row[0][3:]): row[1:] for row in rows if len(row) > 1 and re.fullmatch(r"GPU\d+", row[0])}
    # The header line also begins with GPU0, but its next word is the name of another GPU and not a link.
    named = {number: row for number, row in named.items() if not row[0].startswith("GPU")}
    return {(a, b): row[b] for a, row in named.items() for b in named if a < b and b < len(row)}


def describe_links(of_pairs: Mapping[tuple[int, int], str], apart: list[tuple[int, int]], n_gpus: int) -> Check:
    """Return the check of the links between GPUs. of_pairs: the link of each pair of GPUs; empty if nvidia-smi is
    missing. apart: the pairs of GPUs that cannot access each other's memory."""
    counts = Counter(of_pairs.values())
    shown = ", ".join(
        f"{count} pair{'s' if count > 1 else ''} connected by {_named(link)}" for link, count in counts.most_common()
    )
    found = f"{n_gpus} GPUs: {shown or 'nvidia-smi was not found'}"
    if apart:
        found += (
            f"; in {len(apart)} pairs, the GPUs cannot access each other's memory, such as GPUs {apart[0][0]} and "
            f"{apart[0][1]}"
        )
    fix = (
        "check that NVLink is active (nvidia-smi nvlink --status; HGX needs nvidia-fabricmanager), and that PCIe ACS "
        "is disabled; GPUs without NVLink are slow with FSDP and expert parallelism"
    )
    is_slow = bool(apart) or any(link in _SLOW_LINKS for link in counts)
    return slow_if(is_slow, Check(name="GPU links", status="ok", found=found, fix=fix))


def _named(link: str) -> str:
    kind = "NV" if link.startswith("NV") else link
    return f"{link} ({_LINKS[kind]})" if kind in _LINKS else link
