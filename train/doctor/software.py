"""Installed software: torch, NCCL, Triton and the tools that its compiler needs, MegaBlocks and flash-attn."""

import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

from train.doctor.check import Check
from train.hardware.device import Machine

_COMPILE_SECONDS = 60
_NO_GPU = "not needed, because there is no GPU"
_HEADERS = (
    "install the headers of this Python (Debian: apt-get install python3-dev), or use a Python that includes them (uv "
    "python install, pyenv, conda)"
)


def check_torch(machine: Machine) -> Iterator[Check]:
    yield Check(name="torch", status="ok", found=f"{machine.wheel}, Python {platform.python_version()}")


def check_nccl(machine: Machine) -> Iterator[Check]:
    """Check that torch includes NCCL, which ranks on GPUs need to communicate."""
    import torch.distributed as dist

    if not machine.torch_gpus:
        yield Check(name="NCCL", status="not here", found=_NO_GPU)
    elif not dist.is_nccl_available():
        fix = "install a wheel of torch for CUDA (uv pip install --torch-backend auto -e .)"
        yield Check(name="NCCL", status="wrong", found="this torch was built without NCCL", fix=fix)
    else:
        version = importlib.import_module("torch.cuda.nccl").version()
        yield Check(name="NCCL", status="ok", found=".".join(map(str, version)))


def check_compiler(*, gpu: bool) -> Iterator[Check]:
    """Check the C compiler and Python.h by compiling a small program. Triton also needs both when it first launches a
    kernel (triton/runtime/build.py), so if one is missing, a run on GPUs fails in its first step."""
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    missing = "wrong" if gpu else "not here"
    if compiler is None:
        found = "none: no gcc, no clang, and CC is not set" + ("" if gpu else f"; {_NO_GPU}")
        fix = "install a C compiler (Debian: apt-get install gcc), or set CC"
        yield Check(name="C compiler", status=missing, found=found, fix=fix)
        yield Check(name="Python.h", status="not here", found="not checked without a compiler")
        return
    if (error := _compile(compiler, "")) is not None:
        fix = "reinstall the compiler and the C library's headers (Debian: apt-get install gcc libc6-dev), or set CC"
        yield Check(name="C compiler", status=missing, found=f"{compiler} fails: {error}", fix=fix)
        yield Check(name="Python.h", status="not here", found="not checked without a compiler")
        return
    yield Check(name="C compiler", status="ok", found=compiler)
    folder = _include_folder()
    if (error := _compile(compiler, "#include <Python.h>\n", f"-I{folder}")) is not None:
        found = f"not usable in {folder}: {error}" if (folder / "Python.h").exists() else f"not in {folder}"
        yield Check(name="Python.h", status=missing, found=found, fix=_HEADERS)
    else:
        yield Check(name="Python.h", status="ok", found=str(folder / "Python.h"))


def _include_folder() -> Path:
    scheme = sysconfig.get_default_scheme()
    # Debian's default scheme points to /usr/local, which does not contain the headers.
    return Path(sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"])


def _compile(compiler: str, header: str, *flags: str) -> str | None:
    """Compile a shared library and return the compiler's error message; None if it succeeds."""
    with tempfile.TemporaryDirectory() as made:
        source = Path(made, "probe.c")
        source.write_text(f"{header}int probe(void) {{ return 0; }}\n")
        command = [compiler, str(source), "-shared", "-fPIC", *flags, "-o", str(Path(made, "probe.so"))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    lines = done.stderr.splitlines()
    message = next((line for line in lines if "error" in line), lines[0] if lines else f"exit code {done.returncode}")
    return None if done.returncode == 0 else message.rpartition("error: ")[2].strip()


def check_triton(machine: Machine) -> Iterator[Check]:
    """Check that Triton can be imported and, on a GPU, that a kernel of train/models computes the same result as
    torch."""
    try:
        version = importlib.import_module("triton").__version__
    except Exception as error:
        found = f"cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})"
        fix = "reinstall torch, which includes the Triton version that it needs"
        gone = importlib.util.find_spec("triton") is None and not machine.torch_gpus
        yield Check(name="Triton", status="not here" if gone else "wrong", found=found, fix=fix)
        return
    if not machine.torch_gpus:
        yield Check(name="Triton", status="ok", found=f"{version}; no GPU to run a kernel on")
        return
    import torch
    import torch.nn.functional as F

    from train.models.experts.glu_triton import fused_glu

    x, y = torch.randn(2, 64, 256, device="cuda").unbind()
    out = torch.empty_like(x)
    fused_glu(x, y, out)
    if torch.allclose(out, F.silu(x) * y, atol=1e-5):
        yield Check(
            name="Triton", status="ok", found=f"{version}; a kernel was compiled and computes the correct result"
        )
    else:
        fix = f"delete Triton's cache (TRITON_CACHE_DIR, else {Path.home() / '.triton'}), then reinstall torch"
        yield Check(name="Triton", status="wrong", found=f"{version}; a kernel computes an incorrect result", fix=fix)


def check_megablocks(machine: Machine) -> Iterator[Check]:
    import torch

    from train.models.experts.megablocks import why_not_megablocks

    device = torch.device("cuda" if machine.torch_gpus else "cpu")
    why = why_not_megablocks(device, torch.bfloat16, None)
    yield _optional(
        "MegaBlocks", "megablocks", why, machine, "run scripts/dev/build_megablocks.sh (docs/megablocks.md)"
    )


def check_flash_attn(machine: Machine) -> Iterator[Check]:
    import torch

    from train.models.attention.layout import resolve_attn_impl

    why = None
    try:
        resolve_attn_impl("flash", torch.device("cuda" if machine.torch_gpus else "cpu"), dtype=torch.bfloat16)
    except ValueError as error:
        why = str(error).removeprefix("attn_config.attn_impl is flash, but ").removesuffix(": use auto or sdpa")
    fix = f"uv pip install --python {sys.executable} --no-build-isolation flash-attn (or use attn_impl: auto)"
    yield _optional("flash-attn", "flash_attn", why, machine, fix)


def _optional(name: str, module: str, why: str | None, machine: Machine, fix: str) -> Check:
    """Check an optional library that makes a run faster. Its status is wrong only if the library is installed but
    cannot be used on the node's GPU."""
    if why is None:
        return Check(name=name, status="ok", found="can be imported")
    installed = importlib.util.find_spec(module) is not None
    status = "wrong" if installed and machine.torch_gpus else "not here"
    return Check(name=name, status=status, found=why.partition(": run ")[0], fix=fix if machine.torch_gpus else "")
