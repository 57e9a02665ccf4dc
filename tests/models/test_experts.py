"""Every expert backend against a simple loop over tokens, forward and backward, on random inputs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from tests.helpers.experts import LoopGrouped, routing
from tests.helpers.load_script import load_script
from tests.helpers.missing import skip_or_fail
from train.models.config import FFNConfig
from train.models.experts import grouped
from train.models.experts import megablocks as experts_megablocks
from train.models.experts.assignment import assign
from train.models.experts.experts import ExpertsMLP, resolve_moe_impl
from train.models.experts.torch_loop import torch_experts

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
BOUNDS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 3e-2}
# The dtypes that each backend supports on each device.
COMPUTES = {
    ("torch", "cpu"): (torch.float64, torch.float32),
    ("grouped_mm", "cpu"): (torch.float32,),
    ("torch", "cuda"): (torch.float64, torch.float32, torch.bfloat16),
    ("grouped_mm", "cuda"): (torch.bfloat16,),
    ("megablocks", "cuda"): (torch.bfloat16,),
}
CASES = [(*where, dtype) for where, dtypes in COMPUTES.items() for dtype in dtypes if where[1] in DEVICES]
SMALL = FFNConfig(ffn_hidden_size=24, moe_num_experts=5, moe_top_k=2)
# Not a multiple of a kernel's tile size.
LARGE = FFNConfig(ffn_hidden_size=264, moe_num_experts=5, moe_top_k=2)
D_MODEL = {24: 16, 264: 256}


def grouped_mm_there() -> bool:
    return hasattr(torch, "_grouped_mm") or hasattr(torch.nn.functional, "grouped_mm")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=CASES, ids=lambda case: "-".join(str(part).removeprefix("torch.") for part in case))
def case(request: pytest.FixtureRequest) -> tuple[str, str, torch.dtype]:
    moe_impl = request.param[0]
    if moe_impl == "grouped_mm" and not grouped_mm_there():
        pytest.skip("this torch has no grouped GEMM")
    if moe_impl == "megablocks":
        pytest.importorskip("megablocks", reason="MegaBlocks is not installed", exc_type=ImportError)
    return request.param


def make_experts(config: FFNConfig, device: str, dtype: torch.dtype, **changes: object) -> ExpertsMLP:
    config = replace(config, **changes)
    mlp = ExpertsMLP(D_MODEL[config.ffn_hidden_size], config).to(device, dtype)
    for param in mlp.parameters():
        torch.nn.init.normal_(param, std=0.3)
    return mlp


def make_inputs(config: FFNConfig, device: str, dtype: torch.dtype, name: str = "random") -> tuple[Tensor, ...]:
    """x [T, D], weights [T, K], experts [T, K] and the gradient of the output [T, D]."""
    T, change = routing(name, config)
    scores = change(torch.randn(T, config.moe_num_experts, dtype=torch.float64))
    x, dy = torch.randn(2, T, D_MODEL[config.ffn_hidden_size], dtype=torch.float64)
    weights = torch.rand(T, config.moe_top_k, dtype=torch.float64)
    experts = scores.topk(config.moe_top_k).indices
    return x.to(device, dtype), weights.to(device, dtype), experts.to(device), dy.to(device, dtype)


def loop(x: Tensor, weights: Tensor, experts: Tensor, w1: Tensor, v1: Tensor, w2: Tensor, n_experts: int) -> Tensor:
    """The reference: each token, one after the other, through each of its experts."""
    W1, V1, W2 = (w.unflatten(0, (n_experts, -1)) for w in (w1, v1, w2))
    # Zero, but a function of every input, so that all have gradients when there are no tokens.
    y = x * weights.sum() * 0 + 0 * (w1.sum() + v1.sum() + w2.sum())
    rows = list(y)
    for t in range(x.shape[0]):
        for weight, e in zip(weights[t], experts[t].tolist(), strict=True):
            hidden = torch.nn.functional.silu(W1[e] @ x[t]) * (V1[e] @ x[t])
            rows[t] = rows[t] + weight * (hidden @ W2[e])
    return torch.stack(rows) if rows else y


def run(function: Callable[..., Tensor], dy: Tensor, *inputs: Tensor) -> list[Tensor]:
    """The output and the gradients of all inputs."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    y = function(*leaves)
    y.backward(dy)
    assert all(leaf.grad is not None for leaf in leaves), "an input has no gradient: expected zero, got None"
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def typical_weight_gradient(
    x: Tensor, weights: Tensor, experts: Tensor, w1: Tensor, v1: Tensor, w2: Tensor, dy: Tensor, n_experts: int
) -> float:
    """|dy| |y_e| / sqrt(D), the root mean square of dy . y_e over random directions: the largest over the assignments.

    The gradient of a router weight is dy . y_e, where y_e is the expert's output. Its terms cancel, so its rounding
    error is proportional to this number even if the sum is close to zero. With many assignments the largest gradient
    exceeds this number, but the two gradients of a single token can both be close to zero by chance.
    """
    A = experts.numel()
    if not A:
        return 0.0
    x_AD, dy_AD = (tensor.repeat_interleave(experts.shape[1], 0) for tensor in (x, dy))
    y_AD = loop(x_AD, weights.new_ones(A, 1), experts.view(A, 1), w1, v1, w2, n_experts)
    return ((dy_AD.norm(dim=1) * y_AD.norm(dim=1)).max() / dy.shape[1] ** 0.5).item()


def assert_same(got: list[Tensor], expected: list[Tensor], bound: float, typical_weight: float = 0.0) -> None:
    """Compares relative to the largest element of each tensor, or to typical_weight_gradient if that is larger."""
    for name, ours, theirs in zip(("y", "x", "weights", "w1", "v1", "w2"), got, expected, strict=True):
        assert ours.shape == theirs.shape
        if theirs.numel():
            size = theirs.double().abs().max().clamp(min=max(1e-30, typical_weight if name == "weights" else 0.0))
            difference = (ours.double() - theirs.double()).abs().max() / size
            assert difference <= bound, f"{name} differs by {difference:.1e}"


def through(mlp: ExpertsMLP, experts: Tensor, n_experts: int, wrap: bool = False) -> Callable[..., Tensor]:
    """The module as a function of its input, the router's weights and its own weights."""

    def call(x: Tensor, weights: Tensor, w1: Tensor, v1: Tensor, w2: Tensor) -> Tensor:
        given = {"w1": w1, "v1": v1, "w2": w2}
        return torch.func.functional_call(mlp, given, (x, weights, assign(experts, n_experts)))

    return (lambda *inputs: checkpoint(call, *inputs, use_reentrant=False)) if wrap else call  # pyright: ignore


def check(case: tuple[str, str, torch.dtype], config: FFNConfig, name: str = "random", **options: bool) -> None:
    moe_impl, device, dtype = case
    recompute, wrap = options.get("recompute", False), options.get("wrap", False)
    mlp = make_experts(config, device, dtype, moe_impl=moe_impl, moe_recompute=recompute)
    x, weights, experts, dy = make_inputs(config, device, dtype, name)
    E = config.moe_num_experts
    inputs = (x, weights, mlp.w1, mlp.v1, mlp.w2)
    got = run(through(mlp, experts, E, wrap), dy, *inputs)
    # The reference gets the same rounded numbers, but computes in fp64.
    doubles = [tensor.detach().double() for tensor in inputs]
    reference = run(lambda x, weights, *w: loop(x, weights, experts, *w, n_experts=E), dy.double(), *doubles)
    x, weights, *matrices = doubles
    typical = typical_weight_gradient(x, weights, experts, *matrices, dy.double(), n_experts=E)
    assert_same(got, reference, BOUNDS[dtype], typical)
    assert all(tensor.dtype is dtype for tensor in got)


@pytest.mark.parametrize("name", ["random", "skewed", "idle", "one token", "no token"])
def test_a_backend_equals_the_loop_over_tokens(case: tuple[str, str, torch.dtype], name: str) -> None:
    check(case, SMALL, name)


@pytest.mark.parametrize("name", ["random", "skewed", "idle", "one token"])
def test_a_backend_equals_the_loop_at_a_width_of_many_tiles(case: tuple[str, str, torch.dtype], name: str) -> None:
    check(case, LARGE, name)


@pytest.mark.parametrize("options", [{"recompute": True}, {"wrap": True}, {"recompute": True, "wrap": True}], ids=str)
def test_a_backend_equals_the_loop_with_recomputation(
    case: tuple[str, str, torch.dtype], options: dict[str, bool]
) -> None:
    check(case, SMALL, **options)


@pytest.mark.parametrize("recompute", [False, True])
def test_gradcheck_passes(recompute: bool) -> None:
    config = replace(SMALL, ffn_hidden_size=24, moe_num_experts=3)
    D, dtype = 4, torch.float64
    experts = torch.tensor([[0, 1], [1, 0], [0, 1]])  # the third expert gets no tokens
    assignment = assign(experts, config.moe_num_experts)
    shapes = ((3, D), (3, 2), (9, D), (9, D), (9, D))
    inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(lambda *tensors: torch_experts(*tensors, assignment, recompute), inputs)
    loops = LoopGrouped(assignment)
    assert torch.autograd.gradcheck(lambda *tensors: grouped.grouped_glu(*tensors, loops, recompute), inputs)


class CountGemms(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm_, torch.ops.aten.addmm)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("trained", "gemms"),
    [("x w1 v1 w2", 9), ("x w1 v1", 8), ("x w2", 7), ("w1", 5), ("x", 6), ("v1", 5), ("w2", 5)],
)
@pytest.mark.parametrize("shared", [False, True], ids=["torch", "grouped"])
def test_frozen_weights_cost_no_gemm(trained: str, gemms: int, shared: bool) -> None:
    mlp = make_experts(SMALL, "cpu", torch.float64)
    x, weights, experts, dy = make_inputs(SMALL, "cpu", torch.float64)
    named = {"x": x, "w1": mlp.w1, "v1": mlp.v1, "w2": mlp.w2}
    for name, tensor in named.items():
        tensor.requires_grad_(name in trained.split())
    assignment = assign(experts, 5)
    with CountGemms() as mode:
        function, whom = (grouped.grouped_glu, LoopGrouped(assignment)) if shared else (torch_experts, assignment)
        function(x, weights, mlp.w1, mlp.v1, mlp.w2, whom, False).backward(dy)  # type: ignore[operator]
    assert mode.count == 5 * gemms
    assert all((tensor.grad is not None) == tensor.requires_grad for tensor in named.values())


@pytest.mark.parametrize("moe_impl", ["torch", "grouped_mm"])
def test_autocast_computes_in_bf16_and_gives_fp32_gradients(moe_impl: str) -> None:
    if moe_impl == "grouped_mm" and not grouped_mm_there():
        pytest.skip("this torch has no grouped GEMM")
    mlp = make_experts(SMALL, "cpu", torch.float32, moe_impl=moe_impl)
    x, weights, experts, dy = make_inputs(SMALL, "cpu", torch.float32)
    call = through(mlp, experts, 5)
    exact = run(call, dy, x, weights, mlp.w1, mlp.v1, mlp.w2)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run(call, dy.bfloat16(), x, weights, mlp.w1, mlp.v1, mlp.w2)
    assert rounded[0].dtype is torch.bfloat16
    assert all(grad.dtype is torch.float32 for grad in rounded[1:])
    assert_same(rounded, exact, BOUNDS[torch.bfloat16])


def kept_numel(mlp: ExpertsMLP, config: FFNConfig) -> int:
    """Number of elements saved for backward, without the weights; each storage is counted once."""
    x, weights, experts, _ = make_inputs(config, "cpu", torch.float64)
    kept: dict[int, int] = {}
    weights_kept = {param.untyped_storage().data_ptr() for param in mlp.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights_kept:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mlp(x.requires_grad_(), weights.requires_grad_(), assign(experts, config.moe_num_experts))
    return sum(kept.values())


def test_only_the_input_and_the_preactivations_are_kept() -> None:
    T, K, D, F = 61, 2, 16, 24
    assert kept_numel(make_experts(SMALL, "cpu", torch.float64), SMALL) == T * D + T * K + 2 * T * K * F
    assert kept_numel(make_experts(SMALL, "cpu", torch.float64, moe_recompute=True), SMALL) == T * D + T * K


def test_recomputation_is_bitwise_identical() -> None:
    mlp = make_experts(LARGE, "cpu", torch.float32)
    again = make_experts(LARGE, "cpu", torch.float32, moe_recompute=True)
    x, weights, experts, dy = make_inputs(LARGE, "cpu", torch.float32)
    inputs = (x, weights, mlp.w1, mlp.v1, mlp.w2)
    pairs = zip(run(through(mlp, experts, 5), dy, *inputs), run(through(again, experts, 5), dy, *inputs), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.skipif("cuda" not in DEVICES, reason="there is no GPU")
def test_grouped_mm_never_waits_for_the_gpu() -> None:
    mlp = make_experts(SMALL, "cuda", torch.bfloat16, moe_impl="grouped_mm")
    x, weights, experts, dy = make_inputs(SMALL, "cuda", torch.bfloat16)
    inputs = (x, weights, mlp.w1, mlp.v1, mlp.w2)
    run(through(mlp, experts, 5), dy, *inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(through(mlp, experts, 5), dy, *inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def refusal(moe_impl: str, *where: object) -> str:
    with pytest.raises(ValueError, match=r"^ffn_config\.moe_impl") as caught:
        resolve_moe_impl(moe_impl, *where)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.fixture
def fresh_megablocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A folder in which a test writes a fake megablocks, imported as if for the first time."""
    for name in [name for name in sys.modules if name.split(".")[0] == "megablocks"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    experts_megablocks._import.cache_clear()
    yield tmp_path
    experts_megablocks._import.cache_clear()


def test_auto_takes_torch_on_a_cpu() -> None:
    assert resolve_moe_impl("auto", "cpu") == "torch"
    assert resolve_moe_impl("torch", torch.device("cpu")) == "torch"


def test_an_unknown_backend_is_refused() -> None:
    assert "expected one of auto, torch, grouped_mm, megablocks, got 'fast'" in refusal("fast", "cpu")


def test_grouped_mm_is_refused_with_the_cause() -> None:
    cause = "does not support torch.float64" if grouped_mm_there() else "has no grouped GEMM"
    assert cause in refusal("grouped_mm", "cpu", torch.float64)


def test_megablocks_is_refused_where_it_is_not_installed(monkeypatch, fresh_megablocks: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(fresh_megablocks)])
    assert "MegaBlocks is not installed: run scripts/dev/build_megablocks.sh" in refusal("megablocks", "cuda")
    assert "(MegaBlocks also requires a GPU; this device is cpu)" in refusal("megablocks", "cpu")


def test_megablocks_is_rejected_with_its_import_error(fresh_megablocks: Path) -> None:
    package = fresh_megablocks / "megablocks"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('0 active drivers ([]).\\nThere should only be one.')")
    message = refusal("megablocks", "cuda")
    assert "importing MegaBlocks failed: RuntimeError: 0 active drivers ([]). There should only be one." in message


def make_fake_megablocks(folder: Path, grouped_gemm: bool) -> None:
    package = folder / "megablocks"
    (package / "backend").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "backend" / "__init__.py").touch()
    (package / "backend" / "kernels.py").touch()
    util = f"backend = None\ndef grouped_gemm_is_available():\n    return {grouped_gemm}\n"
    (package / "grouped_gemm_util.py").write_text(util)


def test_megablocks_is_refused_without_a_gpu_its_grouped_gemm_or_bf16(fresh_megablocks: Path) -> None:
    make_fake_megablocks(fresh_megablocks, grouped_gemm=True)
    assert "but MegaBlocks requires a GPU, and this device is cpu" in refusal("megablocks", "cpu")
    message = refusal("megablocks", "cuda", torch.float32)
    assert "supports only bfloat16, not torch.float32" in message
    assert resolve_moe_impl("auto", "cuda", torch.bfloat16) == "megablocks"


def test_megablocks_is_refused_where_its_addresses_would_overflow(monkeypatch, fresh_megablocks: Path) -> None:
    make_fake_megablocks(fresh_megablocks, grouped_gemm=True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    mlp = ExpertsMLP(6144, FFNConfig(ffn_hidden_size=1, moe_num_experts=4, moe_top_k=4, moe_impl="megablocks"))
    assignment = assign(torch.zeros(1, 4, dtype=torch.int64), 4)
    x_TD, weights_TK = torch.zeros(1, 1).expand(87_382, 6144), torch.zeros(1, 1).expand(87_382, 4)
    expected = r"87,382 tokens x 4 experts per token x d_model 6,144 is 2,147,500,032, which must be below 2\*\*31"
    with pytest.raises(ValueError, match=f"ffn_config.moe_impl is megablocks, but .*{expected}"):
        mlp(x_TD, weights_TK, assignment)
    assert resolve_moe_impl("megablocks", "cpu", torch.float32, (87_381, 4, 6144)) == "megablocks"
    assert resolve_moe_impl("auto", "cuda", torch.float64, (87_382, 4, 6144)) == "torch"
    # Exactly at the limit.
    assert resolve_moe_impl("megablocks", "cpu", torch.float32, (2**31 - 1, 1, 1)) == "megablocks"
    assert "(grouped_mm has no such limit)" in refusal("megablocks", "cpu", torch.float32, (2**31, 1, 1))


def test_tokens_received_by_a_rank_are_rejected_where_addresses_would_overflow(monkeypatch, fresh_megablocks) -> None:
    make_fake_megablocks(fresh_megablocks, grouped_gemm=True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    mlp = ExpertsMLP(6144, FFNConfig(ffn_hidden_size=1, moe_num_experts=4, moe_top_k=4, moe_impl="megablocks"))

    def receive(compute: Callable[..., Tensor], x_TD: Tensor, weights_TK: Tensor, assignment: object) -> Tensor:
        return compute(x_TD[:1].expand(349_526, 6144), weights_TK[:1, :1].expand(349_526, 1), assignment)

    mlp.parallel = receive  # type: ignore[assignment]
    expected = r"349,526 tokens x 1 experts per token x d_model 6,144 is 2,147,487,744, which must be below 2\*\*31"
    with pytest.raises(ValueError, match=expected):
        mlp(torch.zeros(1, 6144), torch.zeros(1, 4), assign(torch.zeros(1, 4, dtype=torch.int64), 4))


def test_megablocks_is_refused_without_its_grouped_gemm(monkeypatch, fresh_megablocks: Path) -> None:
    make_fake_megablocks(fresh_megablocks, grouped_gemm=False)
    monkeypatch.setitem(sys.modules, "grouped_gemm", None)
    assert "cannot use its grouped GEMM: ModuleNotFoundError: " in refusal("megablocks", "cuda")


@pytest.fixture(scope="module")
def megablocks_report() -> dict[str, dict[str, float]]:
    """Differences between MegaBlocks and our torch backend, measured in a separate process."""
    folder = Path(os.environ.get("MEGABLOCKS_ON_CPU", Path(sys.prefix) / "megablocks"))
    if not folder.is_dir():
        skip_or_fail(f"MegaBlocks is not in {folder}: make .venv/megablocks")
    script = Path(__file__).parents[1] / "helpers" / "megablocks_on_cpu.py"
    command = [sys.executable, str(script), str(script.parents[2]), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


WEIGHTS = {"experts.mlp.w1", "experts.mlp.v1", "experts.mlp.w2"}
ALL = {"y", "x", "router.layer.weight", *WEIGHTS}
ADAPTERS = {f"experts.mlp.lora.{w}.lora_{matrix}" for w in ("w1", "v1", "w2") for matrix in "AB"}


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("megablocks", ALL),
        ("megablocks, recompute", ALL),
        ("megablocks, frozen", ALL - WEIGHTS),
        ("megablocks, one token", ALL),
        ("megablocks, lora", {"y", "x"} | ADAPTERS),
        ("megablocks, lora per expert", {"y", "x"} | ADAPTERS),
        ("megablocks, expert parallel", ALL),
        ("dMoE", ALL),
    ],
)
def test_megablocks_computes_what_we_do(megablocks_report: dict, part: str, names: set[str]) -> None:
    assert megablocks_report[part].keys() == names
    assert max(megablocks_report[part].values()) < 2e-6, megablocks_report[part]


@pytest.mark.slow
@pytest.mark.subprocess
def test_the_triton_kernels_compute_what_torch_does(megablocks_report: dict) -> None:
    assert len(megablocks_report["kernels"]) == 7
    assert max(megablocks_report["kernels"].values()) < 2e-6, megablocks_report["kernels"]


def test_the_bench_measures_every_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = load_script("bench/moe")
    report = tmp_path / "moe.json"
    sizes = ["--tokens", "24", "--d_model", "16", "--ffn_hidden_size", "8", "--rounds", "7", "--warmup", "0"]
    assert bench.main([*sizes, "--json", str(report)]) == 0
    sides = json.loads(report.read_text())["sides"]
    assert {"ours, torch", "ours, torch, recompute", "ours, torch, half of all tokens to one expert"} <= sides.keys()
    assert all(len(side["seconds"]) == 7 for side in sides.values())
    T, K, F = 24, 4, 8
    kept = sides["ours, torch"]["saved_bytes"] - sides["ours, torch, recompute"]["saved_bytes"]
    assert kept == 4 * 2 * T * K * F
    assert "ours, torch, recompute" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        bench.main(["--rounds", "3"])
    assert "--rounds is 3, but it must be at least 7" in capsys.readouterr().err
