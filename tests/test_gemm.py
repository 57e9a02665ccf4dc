"""gemm.c and attention.c against torch in fp64, and when they are used."""

import itertools
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor

from train.models import gemm, kernels_cpu
from train.models.attend_blocks import _Blocks, _FusedBlocks, plan_blocks

pytestmark = pytest.mark.skipif(not kernels_cpu.has_gemm(), reason="no AVX-512, or there was no C compiler")

# Around the 14 rows and 32 columns of a tile, the 16 numbers of a register, and the cuts of 512, 128 and 1024.
SIZES = [
    (1, 1, 1),
    (14, 32, 16),
    (15, 33, 17),
    (13, 31, 1),
    (29, 100, 512),
    (43, 129, 513),
    (1040, 40, 70),
    (3, 300, 1100),
]


@pytest.fixture(params=[1, 3, 4])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def drawn(rows: int, columns: int, transposed: bool, spare: int = 0) -> Tensor:
    """With one stride of 1; the other leaves `spare` numbers between its rows, or columns."""
    if transposed:
        return torch.randn(columns, rows + spare)[:, :rows].t()
    return torch.randn(rows, columns + spare)[:, :columns]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize(("m", "n", "depth"), SIZES)
def test_a_product_equals_torchs_in_fp64(m: int, n: int, depth: int, spare: int, add: bool) -> None:
    for a_transposed, b_transposed in itertools.product((False, True), repeat=2):
        a, b = drawn(m, depth, a_transposed, spare), drawn(depth, n, b_transposed, spare)
        memory = torch.full((m + 2, n + spare), 3.0)
        out = memory[1 : m + 1, :n]
        kernels_cpu.gemm(a, b, out, add)
        expected = a.double() @ b.double() + (3.0 if add else 0.0)
        # Sums of up to 1,100 products, one after the other.
        assert (out - expected).abs().max() <= 4e-6 * max(1.0, float(expected.abs().max()))
        memory[1 : m + 1, :n] = 3.0
        assert bool((memory == 3.0).all()), "it wrote beside"


@pytest.mark.usefixtures("threads")
def test_a_number_depends_on_its_row_and_column_alone() -> None:
    a, b = torch.randn(100, 700), torch.randn(700, 200)
    whole, part = torch.empty(100, 200), torch.empty(11, 45)
    kernels_cpu.gemm(a, b, whole, False)
    kernels_cpu.gemm(a[31:42], b[:, 90:135], part, False)
    assert torch.equal(part, whole[31:42, 90:135])
    torch.set_num_threads(1)
    alone = torch.empty_like(whole)
    kernels_cpu.gemm(a, b, alone, False)
    assert torch.equal(alone, whole)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_not_hidden(bad: float) -> None:
    a, b, out = torch.rand(20, 50), torch.rand(50, 40), torch.empty(20, 40)
    a[3, 7] = bad
    kernels_cpu.gemm(a, b, out, False)
    assert torch.equal(out.isfinite(), (a @ b).isfinite())
    assert not out[3].isfinite().any()


def test_it_is_used_for_what_it_can_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr(gemm, "_gemm", lambda a, b, out, add: used.append(kernels_cpu.gemm(a, b, out, add)))
    monkeypatch.setattr(gemm, "PREFERS_KERNEL", True)

    def uses(a: Tensor, b: Tensor, add: bool = False) -> bool:
        used.clear()
        out = torch.ones(a.shape[0], b.shape[1], dtype=a.dtype)
        assert gemm.mm(a, b, out, add) is out
        torch.testing.assert_close(out, a @ b + add, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gemm.mm(a, b), a @ b, rtol=1e-4, atol=1e-4)
        return bool(used)

    a, b = torch.randn(64, 64), torch.randn(64, 64)
    assert uses(a, b)
    assert uses(a, b, add=True)
    assert uses(a.t(), b.t())
    assert not uses(a.double(), b.double(), add=True)
    assert not uses(a[:31], b)
    assert not uses(a[:, :31], b[:31])
    assert not uses(a[:, ::2], b[::2])
    assert not uses(a[:0], b)
    assert not uses(a[:, :0], b[:0])
    assert uses(a[::2], b)
    by_columns = torch.empty(64, 64).t()
    torch.testing.assert_close(gemm.mm(a, b, out=by_columns), a @ b, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(gemm, "PREFERS_KERNEL", False)
    assert not uses(a, b)


def test_threads_take_the_memory_for_copies_with_them() -> None:
    a, b = torch.randn(64, 64), torch.randn(64, 64)

    def multiply() -> None:
        torch.set_num_threads(1)
        gemm.mm(a, b)

    def rss() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    for number in range(60):
        if number == 10:
            before = rss()
        thread = threading.Thread(target=multiply)
        thread.start()
        thread.join()
    # 2.3 MB each.
    assert rss() - before < 20e6


def test_kernels_of_an_older_version_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_cpu, "_declared", lambda loaded: loaded.not_there_yet)
    assert kernels_cpu.library.__wrapped__() is None


DOCUMENTS = {
    "one token": [1],
    "short ones together": [3, 20, 41, 1, 30],
    "cut into blocks": [65, 200, 64, 7],
    "as long as blocks take": [1024],
}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("lengths", DOCUMENTS.values(), ids=DOCUMENTS)
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(8, 2, 64), (3, 3, 26), (4, 1, 16)])
def test_attention_equals_torchs_calls_in_fp64(lengths: list[int], heads: int, kv_heads: int, width: int) -> None:
    T = sum(lengths)
    (run,) = plan_blocks(lengths, T, torch.device("cpu")).runs
    qkv = [torch.randn(T, n, width) for n in (heads, kv_heads, kv_heads)]
    dy = torch.randn(T, heads, width)
    found = []
    for dtype, function, what in ((torch.float32, _FusedBlocks, run), (torch.float64, _Blocks, run.blocks)):
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in qkv]
        y = function.apply(*inputs, what)
        found.append((y, *torch.autograd.grad(y, inputs, dy.to(dtype))))
    for got, expected in zip(*found, strict=True):
        assert (got - expected).abs().max() <= 2e-6 * expected.abs().max()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_attention_does_not_hide_what_is_no_number(bad: float) -> None:
    (run,) = plan_blocks([70], 70, torch.device("cpu")).runs
    q, k, v = (torch.rand(70, 1, 16) + 1 for _ in range(3))
    k[40] = bad
    y = _FusedBlocks.apply(q, k, v, run)
    # Queries before the key that is no number do not see it.
    assert y[:40].isfinite().all()
    assert not y[40:].isfinite().any()
