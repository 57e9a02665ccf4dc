"""What scripts/dev/build_megablocks.sh patches, and its errors before any download."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts" / "dev"
PATCHING = runpy.run_path(str(SCRIPTS / "patch_megablocks.py"))
CUMSUM, SETUP = (patch.file for patch in PATCHING["PATCHES"])
# Excerpts like the two files, before and after the patch.
SOURCES = {
    CUMSUM: "RUN(Exclusive(in,\n\tstream,\n\tdebug_synchronous));\nRUN(Inclusive(in, stream, debug_synchronous));\n",
    SETUP: 'nvcc_flags = [\n    "-std=c++17",  # a reason\n]\nnvcc_flags.append("-O3")\n',
}
PATCHED = {
    CUMSUM: "RUN(Exclusive(in,\n\tstream));\nRUN(Inclusive(in, stream));\n",
    SETUP: 'nvcc_flags = [\n]\nnvcc_flags.append("-O3")\n',
}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for file, text in SOURCES.items():
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
    return tmp_path


def test_the_sources_are_patched_once(sources: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert PATCHING["main"](sources) == 0
    assert capsys.readouterr().out.count(": patched (") == 2
    assert PATCHING["main"](sources) == 0
    assert capsys.readouterr().out == f"{CUMSUM}: already patched\n{SETUP}: already patched\n"
    assert {file: (sources / file).read_text() for file in SOURCES} == PATCHED


@pytest.mark.parametrize("file", SOURCES)
@pytest.mark.parametrize("changed", ["", "nvcc_flags = []\nDeviceScan(in, stream));\n" * 3, None])
def test_a_source_without_the_text_to_patch_is_an_error(
    sources: Path, capsys: pytest.CaptureFixture[str], file: str, changed: str | None
) -> None:
    (sources / file).unlink() if changed is None else (sources / file).write_text(changed)
    assert PATCHING["main"](sources) == 2
    assert capsys.readouterr().err.startswith(f"error: {sources / file}")
    assert changed is None or (sources / file).read_text() == changed


def build(folder: Path, torch: str, nvcc: str | None = None, *arguments: str, headers: bool = True) -> str:
    """Return the script's error with a fake torch, and a fake toolkit whose nvcc has the given release."""
    for name, text in {"torch": torch, "pip": "", "setuptools": ""}.items():
        (folder / f"{name}.py").write_text(text)
    if nvcc is not None:
        (folder / "bin").mkdir()
        (folder / "bin" / "nvcc").write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {nvcc}, V{nvcc}.1'\n")
        (folder / "bin" / "nvcc").chmod(0o755)
    if headers:
        (folder / "include").mkdir()
        (folder / "include" / "cusparse.h").touch()
    stand_ins = {"PYTHON": sys.executable, "PYTHONPATH": str(folder), "CUDA_HOME": str(folder), "CXX": "sh"}
    script = SCRIPTS / "build_megablocks.sh"
    done = subprocess.run(
        ["bash", str(script), *arguments],
        env={**os.environ, **stand_ins, "OUT": str(folder / "out")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done
    assert not (folder / "out").exists()
    return done.stderr


TORCH = "class version:\n    cuda = {!r}\n__version__ = '2.15.0'\n"


@pytest.mark.subprocess
def test_a_torch_without_cuda_is_refused(tmp_path: Path) -> None:
    message = build(tmp_path, TORCH.format(None))
    assert message.startswith("error: torch 2.15.0 of ")
    assert "is built without CUDA: install a CUDA wheel" in message


@pytest.mark.subprocess
def test_a_torch_that_cannot_be_imported_is_refused(tmp_path: Path) -> None:
    message = build(tmp_path, "raise OSError('libcudart.so.13 is missing')")
    assert "cannot import torch (OSError: libcudart.so.13 is missing): install the environment" in message


@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("nvcc", "headers", "found"),
    [(None, True, "no nvcc"), ("12.6", True, "12.6"), ("13.2", False, "nvcc, but not the header cusparse.h")],
)
def test_a_toolkit_that_cannot_build_is_refused(tmp_path: Path, nvcc: str | None, headers: bool, found: str) -> None:
    message = build(tmp_path, TORCH.format("13.2"), nvcc, headers=headers)
    assert message.startswith(f"error: torch 2.15.0 requires nvcc of CUDA 13.2, but {tmp_path} has {found}; install")
    assert "uv pip install 'cuda-toolkit[nvcc,cccl]==13.2.*'" in message


@pytest.mark.subprocess
def test_an_unknown_argument_is_refused(tmp_path: Path) -> None:
    assert build(tmp_path, "", None, "--chek") == "error: unknown argument --chek: the only option is --check\n"
