"""Installs MegaBlocks' Python files into a separate folder, for tests on machines without a GPU.

Its setup.py asks torch for the GPU's capability. It is built with a fake torch that reports no GPU, so it leaves out
the CUDA extension, which tests/helpers/megablocks_on_cpu.py replaces.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = ("megablocks==0.10.0", "stanford-stk==0.7.1")


def install(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        utils = Path(folder, "torch", "utils")
        utils.mkdir(parents=True)
        (utils.parent / "__init__.py").write_text("__version__ = '2.7.0+cpu'\n")
        (utils / "__init__.py").touch()
        (utils / "cpp_extension.py").write_text("CUDA_HOME = BuildExtension = CUDAExtension = None\n")
        shutil.rmtree(target, ignore_errors=True)
        new = Path(f"{target}.new")
        shutil.rmtree(new, ignore_errors=True)
        options = ("--quiet", "--no-deps", "--no-build-isolation", "--target", str(new), *PACKAGES)
        uv = (sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable, *options)
        env = {**os.environ, "PYTHONPATH": folder}
        if subprocess.run(uv, env=env, check=False).returncode:
            # Fallback if only pip is configured for the package index.
            shutil.rmtree(new, ignore_errors=True)
            subprocess.run((sys.executable, "-m", "pip", "install", *options), env=env, check=True)
        new.rename(target)


if __name__ == "__main__":
    install(Path(sys.argv[1]))
