"""Compiles the kernel of a launch for a GPU, without a GPU, and returns its registers, spills and shared memory."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from scripts.dev.gate.addresses import narrow_products
from scripts.dev.gate.launches import Launch

KIB = 1024
SHARED_LIMITS = {80: 163 * KIB, 90: 227 * KIB, 100: 227 * KIB}
"""Maximum shared memory per block in bytes, by compute capability times ten (CUDA C++ Programming Guide, technical
specifications per compute capability)."""


class Compiled(NamedTuple):
    """A kernel compiled for one compute capability."""

    registers: int
    """Registers per thread."""
    spilled: int
    """Spilled bytes per thread: stack and local memory, as in Triton's n_spills."""
    shared: int
    """Shared memory per block in bytes. Triton's kernels use only dynamic shared memory."""
    narrow: list[str]
    """Products that have a row number as a factor and are computed in 32 bits."""

    def defects(self, capability: int) -> list[str]:
        """Return the reasons why the kernel is slow or cannot run on a GPU of this capability."""
        found = [f"spills {self.spilled} bytes per thread"] if self.spilled else []
        if self.shared > (limit := SHARED_LIMITS[capability]):
            found.append(f"needs {self.shared:,} bytes of shared memory per block, but sm_{capability} has {limit:,}")
        return found


def why_not_compiled() -> str | None:
    """Return the reason why kernels cannot be compiled on this machine, or None."""
    could_not = "the Triton kernels could not be compiled"
    try:
        import triton
    except ImportError as error:
        return (
            f"{could_not}: {error}. torch's CUDA wheels include Triton, but its CPU wheel does not: install a CUDA "
            "wheel, or only Triton (uv pip install triton)"
        )
    missing = [name for name in ("ptxas", "cuobjdump") if not (_tools(triton) / name).is_file()]
    if missing:
        return f"{could_not}: Triton {triton.__version__} is installed without {' and '.join(missing)}"
    return None


def compile_launch(launch: Launch, capability: int) -> Compiled:
    """Compile the kernel of a launch. Errors of Triton and ptxas are raised unchanged."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    alignment = {(place,): [["tt.divisibility", 16]] for place in launch.aligned}
    source = ASTSource(launch.function, launch.types, launch.constants, alignment)
    # True is the default of the supported versions. An explicit value avoids Triton's warning that the default will
    # change.
    options = {"enable_fp_fusion": True} | launch.options
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _resources(_tools(triton) / "cuobjdump", made.asm["cubin"])
    return Compiled(registers, spilled, made.metadata.shared, narrow_products(made.asm["ttir"]))


def _tools(triton: Any) -> Path:
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def _resources(cuobjdump: Path, cubin: bytes) -> tuple[int, int]:
    """Return registers, and bytes of stack and local memory, without loading the kernel into a driver."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(cuobjdump), "--dump-resource-usage", file.name]
        shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", shown)
    if found is None:
        raise ValueError(f"cuobjdump shows no resource usage: {shown!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local
