"""Adapters compute the same outputs and gradients as merged weights, and cost the frozen base nothing."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.experts import LoopGrouped, routing
from tests.helpers.small_config import load, refusal
from train.config.load import read_config
from train.config.schema import FSDPConfig
from train.distributed.build_model import checkpoint_activations
from train.models.config import AttnConfig, FFNConfig, LoraConfig, ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.experts import experts
from train.models.experts.assignment import Assignment, assign
from train.models.experts.torch_loop import Looped
from train.models.flops import flops_per_token
from train.models.init import initialise
from train.models.lora.adapters import LoraExperts, adapters, add_lora, draw_adapter_rows, is_adapter
from train.models.lora.experts import Options, Pair, _LowRank, lora_glu
from train.models.shapes import (
    adapted_shapes,
    adapter_name,
    adapter_shapes,
    count_adapters,
    count_parameters,
    parameter_shapes,
)
from train.planning.memory import memory_per_rank

D, F_, E, K, R = 16, 24, 5, 2, 3
ALL = ["Wqkv", "out_proj", "experts", "router"]


def model_config(**ffn: Any) -> ModelConfig:
    return ModelConfig(
        d_model=D,
        n_heads=4,
        n_layers=2,
        max_seq_len=32,
        vocab_size=48,
        attn_config=AttnConfig(kv_n_heads=2),
        ffn_config=FFNConfig(ffn_hidden_size=F_, moe_num_experts=E, moe_top_k=K, **ffn),
        initializer_range=0.3,
    )


def lora_config(**changes: Any) -> LoraConfig:
    return LoraConfig(**{"r": R, "alpha": 5.0, "target_modules": ALL, **changes})


def make(lora: LoraConfig | None, **ffn: Any) -> DbrxForCausalLM:
    """A model in fp64, with the same base weights for the same shape, and adapters that are not zero."""
    config = model_config(**ffn)
    model = DbrxForCausalLM(config).double()
    initialise(model, config, seed=0)
    if lora is not None:
        add_lora(model, lora, torch.float64)
        generator = torch.Generator().manual_seed(1)
        for name, param in model.named_parameters():
            if is_adapter(name):
                torch.nn.init.normal_(param, std=0.3, generator=generator)
    return model


def loss_of(output: Any) -> Tensor:
    return output.losses_BS.mean() + 0.1 * output.z_sums_L.mean() + (output.prob_sums_LE**2).mean()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    ids = torch.randint(0, 48, (3, 20), generator=torch.Generator().manual_seed(2))
    return ids, ids.roll(-1, 1), (torch.arange(20) >= 7).long().expand(3, 20)


def loss(model: DbrxForCausalLM) -> Tensor:
    return loss_of(model(*batch()))


def delta(lora: LoraConfig, pair: dict[str, Tensor]) -> Tensor:
    """alpha / r * B A as defined; per expert if each expert has its own A."""
    A, B = pair["lora_A"], pair["lora_B"]
    if A.shape[0] == lora.r:
        return lora.alpha / lora.r * B @ A
    A_ERD, B_EFR = A.unflatten(0, (E, -1)), B.unflatten(0, (E, -1))
    return lora.alpha / lora.r * torch.einsum("efr,erd->efd", B_EFR, A_ERD).flatten(0, 1)


def base_name(name: str) -> str:
    """`x.Wqkv.lora.lora_A` adapts `x.Wqkv.weight`, `x.mlp.lora.w1.lora_A` adapts `x.mlp.w1`."""
    above, _, below = name.rpartition(".lora.")
    return f"{above}.{below.split('.')[0]}" if below.count(".") else f"{above}.weight"


def merged_loss(model: DbrxForCausalLM, lora: LoraConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a plain model with merged weights, as a function of the adapters, and the adapters."""
    leaves = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters() if is_adapter(n)}
    weights = {n: p.detach() for n, p in model.named_parameters() if not is_adapter(n)}
    for name in [n for n in leaves if n.endswith("lora_A")]:
        pair = {"lora_A": leaves[name], "lora_B": leaves[name.replace("lora_A", "lora_B")]}
        weights[base_name(name)] = weights[base_name(name)] + delta(lora, pair)
    return loss_of(functional_call(make(None), weights, batch())), leaves


def assert_gradients(model: DbrxForCausalLM, lora: LoraConfig) -> None:
    expected_loss, leaves = merged_loss(model, lora)
    expected_loss.backward()
    ours = loss(model)
    ours.backward()
    assert torch.allclose(ours, expected_loss, rtol=1e-12, atol=0)
    got = {name: param.grad for name, param in model.named_parameters() if param.grad is not None}
    assert got.keys() == leaves.keys()
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        assert leaf.grad.abs().max() > 0, name
        worst = (got[name] - leaf.grad).abs().max() / leaf.grad.abs().max()
        assert worst < 1e-10, f"{name} differs by {worst:.1e}"


@pytest.fixture(params=["torch", "grouped"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop, and the code that grouped_mm and megablocks share, with GEMMs that work in fp64 on a CPU."""
    monkeypatch.setitem(experts.GROUPED, "torch", Looped if request.param == "torch" else LoopGrouped)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("per_expert", [False, True], ids=["shared", "per_expert"])
@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
def test_gradients_are_those_of_merged_weights(per_expert: bool, recompute: bool) -> None:
    lora = lora_config(per_expert=per_expert)
    assert_gradients(make(lora, moe_recompute=recompute), lora)


@pytest.mark.parametrize("targets", [["w1"], ["w2"], ["v1", "w2"], ["Wqkv"], ["layer"], ["attn", "w1"]], ids=str)
def test_gradients_are_those_of_merged_weights_with_some_adapters(targets: list[str]) -> None:
    lora = lora_config(target_modules=targets)
    model = make(lora)
    names = {base_name(name).rpartition(".")[2] for name, _ in model.named_parameters() if is_adapter(name)}
    assert names == {"weight" if name in ("Wqkv", "out_proj", "layer") else name for name in lora.targets}
    assert_gradients(model, lora)


@pytest.mark.parametrize("policy", ["block", "selective"])
@pytest.mark.parametrize("per_expert", [False, True], ids=["shared", "per_expert"])
def test_gradients_are_those_of_merged_weights_with_recomputation(policy: Any, per_expert: bool) -> None:
    lora = lora_config(per_expert=per_expert, dropout=0.2)
    kept, again = make(lora), make(lora)
    checkpoint_activations(again, FSDPConfig(activation_checkpointing=policy))
    for model in (kept, again):
        torch.manual_seed(3)
        loss(model).backward()
    pairs = zip(kept.named_parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for (name, a), b in pairs if is_adapter(name))  # type: ignore[arg-type]


def lora_inputs(name: str, per_expert: bool) -> tuple[Assignment, list[Tensor]]:
    T, change = routing(name, model_config().ffn_config)
    T = min(T, 7)
    chosen = change(torch.randn(T, E, dtype=torch.float64)).topk(K).indices
    A, B = (E * R if per_expert else R, D), (E * F_, R)
    shapes = ((T, D), (T, D), (T, K), *[(E * F_, D)] * 3, *[A, B] * 3)
    return assign(chosen, E), [torch.randn(shape, dtype=torch.float64) / 4 for shape in shapes]


@pytest.mark.parametrize("grouped", [Looped, LoopGrouped])
@pytest.mark.parametrize(
    "given", [(False, 0.0, False), (True, 0.0, True), (False, 0.4, True), (True, 0.4, False)], ids=str
)
@pytest.mark.parametrize("name", ["random", "skewed", "idle", "one token", "no token"])
def test_gradcheck_passes(grouped: Callable, given: tuple[bool, float, bool], name: str) -> None:
    options = Options(1.5, *given)
    assignment, inputs = lora_inputs(name, options.per_expert)

    def call(x: Tensor, dropped: Tensor, weights: Tensor, *pairs: Tensor) -> Tensor:
        torch.manual_seed(4)
        made = (Pair(*pairs[:2]), Pair(*pairs[2:4]), Pair(*pairs[4:]))
        base = (inputs[3], inputs[4], inputs[5])
        return lora_glu(x, dropped, weights, base, made, grouped(assignment), options)

    trained = [tensor.requires_grad_() for index, tensor in enumerate(inputs) if not 3 <= index < 6]
    assert torch.autograd.gradcheck(call, trained, fast_mode=True)


def test_dropout_applies_only_in_training() -> None:
    model, still = make(lora_config(dropout=0.5)), make(lora_config())
    assert not torch.equal(loss(model), loss(model))
    assert torch.equal(loss(model.eval()), loss(still))


def test_dropped_numbers_keep_their_mean() -> None:
    low = _LowRank(Looped(assign(torch.zeros(1, 1, dtype=torch.long), 1)), Options(1.0, False, 0.3, False))
    dropped = low.dropped(torch.ones(200, 200), seed=5)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert dropped.mean().item() == pytest.approx(1, abs=0.02)


class Gemms(TorchDispatchMode):
    """Counts the multiplications of every GEMM."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            a, b = args[-2:]
            self.total += a.shape[0] * a.shape[1] * b.shape[1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("per_expert", [False, True], ids=["shared", "per_expert"])
def test_frozen_experts_cost_no_weight_gradient(per_expert: bool) -> None:
    mlp = make(lora_config(per_expert=per_expert)).transformer.blocks[0].ffn.experts.mlp  # type: ignore[union-attr]
    T = 50
    chosen = torch.randn(T, E).topk(K).indices
    x, weights = torch.randn(T, D, dtype=torch.float64, requires_grad=True), torch.rand(T, K, dtype=torch.float64)
    with Gemms() as forward:
        y = mlp(x, weights, assign(chosen, E))
    with Gemms() as backward:
        y.sum().backward()
    base, in_A, in_B = 3 * T * K * D * F_, (T * K if per_expert else T) * D * R, T * K * F_ * R
    assert forward.total == base + 3 * (in_A + in_B)
    # Both gradients of each adapter, A x again for the gradient of B and, for w2, act B again for that of A.
    assert backward.total == base + 2 * (3 * in_A + 2 * in_B) + (2 * in_A + 3 * in_B)
    assert [name for name, param in mlp.named_parameters() if param.grad is not None] == [
        name for name, _ in mlp.named_parameters() if is_adapter(name)
    ]


@pytest.mark.parametrize("per_expert", [False, True], ids=["shared", "per_expert"])
def test_adapters_save_nothing_more_for_backward(per_expert: bool) -> None:
    mlp = make(lora_config(per_expert=per_expert)).transformer.blocks[0].ffn.experts.mlp  # type: ignore[union-attr]
    T = 50
    x, weights = torch.randn(T, D, dtype=torch.float64, requires_grad=True), torch.rand(T, K, dtype=torch.float64)
    kept: dict[int, int] = {}
    params = {param.untyped_storage().data_ptr() for param in mlp.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mlp(x, weights, assign(torch.randn(T, E).topk(K).indices, E))
    assert sum(numel for place, numel in kept.items() if place not in params) == T * D + T * K + 2 * T * K * F_


def test_looped_gemms_equal_the_simple_reference() -> None:
    width, hidden = 256, 264
    assignment = assign(torch.randn(45, E).topk(K).indices, E)
    looped, plain = Looped(assignment), LoopGrouped(assignment)
    x, h, w = torch.randn(90, width), torch.randn(90, hidden), torch.randn(E * hidden, width)
    for name, args in (("rows_by_columns", (x, w)), ("rows_by_rows", (h, w)), ("weight_gradient", (h, x))):
        got, expected = getattr(looped, name)(*args), getattr(plain, name)(*args)
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4), name


def test_initial_adapters_are_pefts_and_add_nothing() -> None:
    A = draw_adapter_rows(0, "x.lora_A", (8, 5000), 0, 8)
    assert A.abs().max() <= 5000**-0.5
    assert A.std().item() == pytest.approx((1 / 3) ** 0.5 * 5000**-0.5, rel=0.02)
    assert not draw_adapter_rows(0, "x.lora_B", (8, 3), 0, 8).any()


def test_rows_do_not_depend_on_the_split() -> None:
    name, shape = "x.lora_A", (3000, 700)
    whole = draw_adapter_rows(7, name, shape, 0, 3000)
    parts = [draw_adapter_rows(7, name, shape, start, stop) for start, stop in ((0, 1), (1, 1499), (1499, 3000))]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(draw_adapter_rows(8, name, shape, 0, 3000), whole)


def test_every_adapter_is_found() -> None:
    found = list(adapters(make(lora_config())))
    assert len(found) == 2 * 4
    assert sum(isinstance(module, LoraExperts) for module in found) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_modules": ["Wq", "experts"]}, "target_modules has unknown names: 'Wq'; valid names are: Wqkv, "),
        ({"target_modules": []}, "target_modules is [], but it must contain at least one name; valid names are: Wqkv"),
        ({"r": 0}, "r is 0, but it must be at least 1"),
        ({"alpha": 0.0}, "alpha is 0.0, but it must be above 0"),
        ({"dropout": 1.0}, "dropout is 1.0, but it must be in [0, 1)"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_an_invalid_config_is_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        lora_config(**changes)
    assert message in str(caught.value)


def test_the_plan_counts_a_bf16_base_and_adapters_alone_with_states(tmp_path: Path) -> None:
    adapted = "lora={r: 4, alpha: 8, target_modules: [experts], base_dtype: %s}"
    whole = count_parameters(load(tmp_path).model)[0]
    for dtype, width in (("bf16", 2), ("fp32", 4)):
        config = load(tmp_path, adapted % dtype)
        assert config.lora is not None
        total, active = count_adapters(config.model, config.lora)
        E, K, D, F, L = 16, 4, 64, 64, 2
        assert (total, active) == (L * 3 * 4 * (D + E * F), L * 3 * 4 * (D + K * F))
        assert memory_per_rank(config, 2, gpu=False).states == (width * whole + 16 * total) / 2


def test_the_plan_counts_36_bytes_for_64_weights_in_4_bits(tmp_path: Path) -> None:
    config = load(tmp_path, "lora={r: 4, alpha: 8, target_modules: [experts], base_dtype: nf4}")
    assert config.lora is not None
    shapes = parameter_shapes(config.model)
    packed = sum(math.prod(shape) for name, shape in shapes.items() if ".mlp." in name or ".attn." in name)
    rest = sum(map(math.prod, shapes.values())) - packed
    states = memory_per_rank(config, 2, gpu=True).states
    assert states == (packed * 36 / 64 + 2 * rest + 16 * count_adapters(config.model, config.lora)[0]) / 2


def test_the_132b_with_adapters_fits_as_stated_in_its_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config(str(Path(__file__).parents[2] / "yamls/finetune/dbrx_lora.yaml"))
    need = memory_per_rank(config, 8, gpu=True)
    message = [round(part / 2**30, 1) for part in (need.states, need.gathered, need.activations)]
    assert message == [pytest.approx(30.6 + 0.7), 6.1, 2.9]
    assert need.total + need.gathered < 0.9 * 80e9
    assert memory_per_rank(replace(config, lora=None), 8, gpu=True).states == pytest.approx(245 * 2**30, rel=1e-3)


def test_a_step_with_adapters_costs_two_thirds_plus_the_adapters() -> None:
    model, lora = ModelConfig(), LoraConfig(r=16, alpha=32, target_modules=["attn", "experts"])
    full, ours = flops_per_token(model, 4096), flops_per_token(model, 4096, lora)
    active = count_parameters(model)[1] - model.vocab_size * model.d_model
    assert full - ours == 2 * active - 6 * count_adapters(model, lora)[1]


def test_impossible_adapters_are_rejected(tmp_path: Path) -> None:
    lora = "lora={r: 4, alpha: 8, target_modules: [experts]}"
    message = refusal(tmp_path, lora, "fsdp_config=null")
    assert "fsdp_config is null, but lora shards the base and its adapters separately" in message
    assert "lora.r is 4000, but it cannot exceed model.d_model" in refusal(tmp_path, lora, "lora.r=4000")
    assert "lora.target_modules has unknown names: 'Wq'" in refusal(tmp_path, lora.replace("experts", "Wq"))


@pytest.mark.parametrize("per_expert", [False, True], ids=["shared", "per_expert"])
def test_the_plan_knows_every_adapter(per_expert: bool) -> None:
    lora = lora_config(per_expert=per_expert)
    found = {name: tuple(param.shape) for name, param in make(lora).named_parameters() if is_adapter(name)}
    assert adapter_shapes(model_config(), lora) == found
    places = {name.rpartition(".")[0] for name in found}
    assert {adapter_name(name) for name in adapted_shapes(model_config(), lora)} == places
