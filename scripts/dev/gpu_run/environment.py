"""The environment of a GPU run, and whether Triton can launch a kernel in it."""

import platform
import shutil
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_PACKAGES = ("transformers", "triton", "megablocks", "grouped_gemm", "flash_attn", "bitsandbytes", "mosaicml")
_FIRST_LAUNCH = "Triton's first launch"


def environment(device: torch.device) -> tuple[dict[str, str], str]:
    """Return facts about the environment by name, and the reason why our kernels cannot run (empty if they can run)."""
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), "none")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    facts = {
        "Python": platform.python_version(),
        "torch": str(torch.__version__),
        **{name: _version(name) for name in _PACKAGES},
        # The C compiler is reported because Triton compiles a launcher when a kernel is first used.
        "C compiler": compiler,
        "Python.h": str(header) if header.is_file() else f"missing: {header}",
        **(_gpu() if device.type == "cuda" else {"device": "CPU"}),
    }
    why = _why_no_launch(device)
    facts[_FIRST_LAUNCH] = why or "our GLU kernel agrees with torch"
    return facts, f"{_FIRST_LAUNCH}: {why}" if why and device.type == "cuda" else ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _gpu() -> dict[str, str]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "memory": f"{properties.total_memory / 1e9:.1f} GB",
        "compute capability": f"{properties.major}.{properties.minor}",
        "CUDA of torch": str(torch.version.cuda),
    }


def _why_no_launch(device: torch.device) -> str | None:
    """Return the reason why Triton cannot launch one of our kernels, or None."""
    if device.type != "cuda":
        return f"not tested on {device.type}"
    h1, h2 = torch.randn(2, 3, 1300, device=device).unbind()
    try:
        from train.models.experts.glu_triton import fused_glu

        fused_glu(h1, h2, act := torch.empty_like(h1))
        difference = (act - torch.nn.functional.silu(h1) * h2).abs().max().item()
    except Exception as error:  # any error of Triton, its driver or the compiler
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None if difference < 1e-5 else f"our GLU kernel differs from torch by {difference:.1e}"
