"""Every Triton kernel compiles for A100, H100 and B200 at DBRX's widths, without a GPU: scripts/dev/gpu_gate.py."""

import builtins
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.dev.gate import launches as gate_launches
from scripts.dev.gate.addresses import narrow_products
from scripts.dev.gate.compiled import SHARED_LIMITS, Compiled, compile_launch, why_not_compiled
from scripts.dev.gate.launches import GLU, KERNELS, MEGABLOCKS, kernels_in, kernels_of_packages
from scripts.dev.gate.report import DTYPES, Row, gate
from tests.helpers.load_script import load_script


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    if why := why_not_compiled():
        pytest.skip(why)
    found, notes = gate(every_config=False)
    if notes and os.environ.get("CI"):
        pytest.fail(notes[0])
    return found


def test_every_kernel_of_ours_is_checked() -> None:
    assert kernels_of_packages() == {GLU: KERNELS[GLU]}


def test_kernels_are_found_for_every_form_of_decorator(tmp_path: Path) -> None:
    file = tmp_path / "kernels.py"
    file.write_text(
        "import triton\nfrom triton import jit\n_ours: Any = triton.jit\n"
        "@triton.jit\ndef a(): ...\n@triton.autotune(configs=[])\n@triton.jit(debug=True)\ndef b(): ...\n"
        "@_ours\ndef c(): ...\n@jit\ndef d(): ...\n@functools.cache\ndef e(): ...\ndef f(): ...\n"
    )
    assert kernels_in(file) == {"a", "b", "c", "d"}


def test_launched_kernels_are_the_listed_ones(rows: list[Row]) -> None:
    launched = {row.kernel for row in rows}
    assert launched in (KERNELS[GLU], KERNELS[GLU] | KERNELS[MEGABLOCKS])
    assert {row.dtype for row in rows} == set(DTYPES)
    # Both values of moe_top_k, with and without weights; few elements and 2**31.
    assert len({row.variant for row in rows if row.kernel == "_combine_kernel"}) == 4
    assert {row.variant for row in rows if row.kernel == "_glu_kernel"} == {"", "numel: i64"}


def test_every_kernel_compiles_for_every_gpu_without_spills(rows: list[Row]) -> None:
    assert [error for row in rows for error in row.errors] == []
    assert all(row.compiled.keys() == {80, 90, 100} for row in rows)
    made = [each for row in rows for compiled in row.compiled.values() for each in compiled]
    assert len(made) == len(rows) * 3
    assert all(8 < each.registers < 128 for each in made)


def test_our_kernels_compute_row_offsets_in_64_bits_and_megablocks_in_32(rows: list[Row]) -> None:
    # MEGABLOCKS_LIMIT exists because of these products: without them it would reject sizes that work.
    for row in rows:
        narrow = [bool(each.narrow) for compiled in row.compiled.values() for each in compiled]
        assert set(narrow) == {row.kernel in KERNELS[MEGABLOCKS]}, row


LOADED = """
%row = tt.load %at : !tt.ptr<i32> loc(#loc)
%c = arith.constant 6144 : i32
"""


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("%p = tt.get_program_id x : i32\n%o = arith.muli %p, %c : i32 loc(#loc1)", 1),
        ("%p = tt.get_program_id y : i32\n%o = arith.muli %p, %c : i32", 0),
        (LOADED + "%t = arith.divsi %row, %four : i32\n%o = arith.muli %t, %c : i32", 1),
        (LOADED + "%s = tt.splat %row : i32 -> tensor<8xi32>\n%o = arith.muli %s, %cs : tensor<8xi32>", 1),
        (LOADED + "%l = arith.extsi %row : i32 to i64\n%o = arith.muli %l, %cl : i64", 0),
        ("%b = scf.if %there -> (i32) {\n%o = arith.muli %b, %c : i32", 1),
        ("%o = arith.muli %c, %c : i32", 0),
    ],
)
def test_a_product_in_32_bits_is_found(code: str, found: int) -> None:
    assert len(narrow_products(code)) == found


def test_too_much_shared_memory_is_a_defect() -> None:
    compiled = Compiled(registers=32, spilled=0, shared=200 * 1024, narrow=[])
    assert [bool(compiled.defects(capability)) for capability in SHARED_LIMITS] == [True, False, False]
    assert "needs 204,800 bytes of shared memory per block, but sm_80 has 166,912" in compiled.defects(80)[0]


def test_a_kernel_that_spills_or_does_not_compile_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    if why := why_not_compiled():
        pytest.skip(why)
    from scripts.dev.gate import report

    backward = next(launch for launch in gate_launches.our_launches(torch.float32) if "backward" in launch.name)
    crowded = backward._replace(options={"maxnreg": 24})
    broken = backward._replace(types=backward.types | {"weights": "fp32"})
    assert compile_launch(crowded, 90).spilled > 0
    monkeypatch.setattr(report, "SHARED_LIMITS", {90: 1})
    for launch, error in ((crowded, "spills"), (broken, "Error")):
        assert any(error in each for each in report._row("k", "v", torch.float32, [launch]).errors)


def test_missing_triton_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = builtins.__import__

    def without_triton(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "triton":
            raise ModuleNotFoundError("No module named 'triton'", name="triton")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_triton)
    assert load_script("dev/gpu_gate").main([]) == 2
    message = capsys.readouterr().err
    assert "could not be compiled: No module named 'triton'" in message
    assert "uv pip install triton" in message
