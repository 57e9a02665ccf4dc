"""The C kernels of kernels.c against torch's own calls in fp64."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from train.models import kernels_cpu
from train.models.attention import _ClipAndRotate
from train.models.glu import glu, glu_backward


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def compiled() -> None:
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler to have made them")
    assert kernels_cpu.library() is not None, "there is a C compiler, but `make .venv/installed` made no kernels"


def test_there_are_gemms_where_the_processor_has_avx512() -> None:
    assert kernels_cpu.has_gemm() == (" avx512f " in Path("/proc/cpuinfo").read_text())


def draw(rows: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    h1, h2, dact = 4 * torch.randn(rows, width), torch.randn(rows, width), torch.randn(rows, width)
    return dact, h1, h2, torch.rand(rows)


def assert_close(got: Tensor, expected: Tensor, bound: float = 1e-6) -> None:
    assert got.dtype is torch.float32
    assert got.shape == expected.shape
    if expected.numel():
        assert (got - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("rows", "width"), [(64, 96), (61, 37), (2, 1), (1, 1000), (0, 16)])
def test_the_kernels_equal_torchs_calls_in_fp64(rows: int, width: int) -> None:
    dact, h1, h2, weights = draw(rows, width)
    assert kernels_cpu.can_fuse(h1)
    assert_close(glu(h1, h2), glu(h1.double(), h2.double()))
    expected = glu_backward(dact.double(), h1.double(), h2.double(), weights.double())
    *rows_of, dweights = glu_backward(dact.clone(), h1, h2, weights)
    for got, want in zip(rows_of, expected[:3], strict=True):
        assert_close(got, want)
    # A sum, whose parts may cancel.
    assert_close(dweights, expected[3], 1e-5)


def test_they_write_where_they_are_told_to() -> None:
    dact, h1, h2, weights = draw(8, 24)
    memory = [torch.full((16, 24), -1.0) for _ in range(3)]
    act, *out = (part[:8] for part in memory)
    assert glu(h1, h2, act) is act
    dh1, dh2, weighted, _ = glu_backward(dact, h1, h2, weights, (out[0], out[1]))
    assert dh1 is dact
    assert dh2 is out[0]
    assert weighted is out[1]
    assert all(bool((part[8:] == -1).all()) for part in memory)


@pytest.mark.parametrize("h1", [-1e30, -200.0, -87.5, -0.0, 0.0, 87.5, 200.0, 1e30])
def test_numbers_of_any_size_give_numbers(h1: float) -> None:
    row = torch.full((1, 17), h1)
    one = torch.ones_like(row)
    got = (glu(row, one), *glu_backward(one.clone(), row, one, torch.ones(1)))
    expected = glu_backward(one.double(), row.double(), one.double(), torch.ones(1).double())
    for tensor, want in zip(got, (expected[2], *expected), strict=True):
        assert torch.allclose(tensor.double(), want, rtol=1e-6, atol=2e-35)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_not_hidden(bad: float) -> None:
    for place in range(3):
        dact, h1, h2, weights = draw(1, 17)
        (dact, h1, h2)[place][0, 5] = bad
        plain = glu_backward(dact.double(), h1.double(), h2.double(), weights.double())
        for got, want in zip(glu_backward(dact.clone(), h1, h2, weights), plain, strict=True):
            assert torch.equal(got.isfinite(), want.isfinite())


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("clip", [None, 1.5])
@pytest.mark.parametrize(
    ("places", "heads", "kv_heads", "width"), [(61, 8, 2, 64), (7, 3, 1, 26), (1, 1, 1, 2), (0, 2, 2, 8)]
)
def test_clipping_and_turning_equal_torchs_calls_in_fp64(
    places: int, heads: int, kv_heads: int, width: int, clip: float | None
) -> None:
    qkv = 2 * torch.randn(places, (heads + 2 * kv_heads) * width)
    if clip is not None:
        # Whether the bounds themselves have a gradient depends on torch.
        qkv[:, ::5], qkv[:, 1::7] = clip, -clip
    cos, sin = torch.randn(2, places, width // 2).repeat(1, 1, 2)
    assert kernels_cpu.can_fuse(qkv, cos, sin)
    found = []
    for dtype in (torch.float32, torch.float64):
        x = qkv.to(dtype, copy=True).requires_grad_()
        parts = _ClipAndRotate.apply(x, cos.to(dtype), sin.to(dtype), clip, heads, kv_heads)
        torch.manual_seed(1)
        # Keys and values as attention's backward gives them: strided.
        grads = [torch.randn(part.shape[1], places, width).transpose(0, 1).to(dtype) for part in parts]
        found.append((*parts, *torch.autograd.grad(parts, x, grads)))
    for got, want in zip(*found, strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("clip", [None, 1.5])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_turning_does_not_hide_what_is_no_number(bad: float, clip: float | None) -> None:
    qkv, (cos, sin) = torch.randn(1, 12), torch.rand(2, 1, 2).repeat(1, 1, 2)
    qkv[0, [1, 6, 9]] = bad
    found = []
    for dtype in (torch.float32, torch.float64):
        x = qkv.to(dtype, copy=True).requires_grad_()
        parts = _ClipAndRotate.apply(x, cos.to(dtype), sin.to(dtype), clip, 1, 1)
        found.append((*parts, *torch.autograd.grad(parts, x, [torch.ones_like(part) for part in parts])))
    for got, want in zip(*found, strict=True):
        assert torch.equal(got.isfinite(), want.isfinite())
