"""Expert parallelism against the same model on one rank: gradients, pretrained weights and exports.

Whole steps on every mesh are in test_step.py and test_exactness.py, checkpoints in test_elastic.py.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from data.base.errors import ConfigError
from tests.helpers.expert_parallel import (
    EP2,
    EP4,
    HYBRID_EP2,
    LORA,
    MESHES,
    Mutant,
    difference,
    draw_adapters,
    mutate,
    route_to_first,
    whole,
)
from tests.helpers.ranks import run_ranks
from tests.helpers.small_export import CONFIG, write_save_folder
from tests.helpers.small_export import MODEL as SMALL
from tests.helpers.toy_run import write_toy_run
from train.config.load import read_config
from train.config.ranks import check_world_size
from train.config.schema import FSDPConfig
from train.export.export import export
from train.models.config import AttnConfig, FFNConfig, ModelConfig
from train.models.recompute import named_parameters

pytestmark = pytest.mark.ranks

FFN = FFNConfig(ffn_hidden_size=24, moe_num_experts=4, moe_top_k=2, moe_impl="torch")
MODEL = ModelConfig(
    d_model=128,  # 4-bit rows are whole numbers of fp64
    n_heads=4,
    n_layers=2,
    max_seq_len=32,
    vocab_size=48,
    attn_config=AttnConfig(kv_n_heads=2),
    ffn_config=FFN,
    initializer_range=0.3,
)


@dataclass(frozen=True)
class Case:
    fsdp: FSDPConfig | None
    impl: str = "torch"
    dtype: torch.dtype = torch.float64
    lora: str | None = None
    """A key of LORA."""
    on_first: bool = False
    """All tokens go to the first expert."""
    mutant: Mutant | None = None


def gradients_of(cases: list[Case]) -> list[dict[str, Tensor]]:
    import torch.distributed as dist
    from composer.utils import dist as composer_dist
    from composer.utils import get_device

    composer_dist.initialize_dist(get_device("cpu"), timeout=60)
    found = []
    for case in cases:
        model = _built(case)
        ids = torch.randint(0, 48, (4, 16), generator=torch.Generator().manual_seed(0))
        mine = ids.chunk(dist.get_world_size())[dist.get_rank()]
        for _ in range(2):
            # Twice, so that a second forward runs after backward.
            model.zero_grad()
            out = model(mine, mine.roll(-1, 1))
            balance = (out.prob_sums_LE * torch.arange(1.0, 5.0)).sum() + out.z_sums_L.sum()
            loss = out.losses_BS.mean() + 0.01 * balance / mine.numel()
            loss.backward()
        loss = loss.detach().clone()
        dist.all_reduce(loss)
        grads = {name: whole(param.grad) for name, param in named_parameters(model) if param.requires_grad}
        found.append({"loss": loss / dist.get_world_size(), **grads})
    return found


def _built(case: Case) -> nn.Module:
    from train.distributed.build_model import build_model

    config = replace(MODEL, ffn_config=replace(FFN, moe_impl=case.impl))  # pyright: ignore[reportArgumentType]
    device, lora = torch.device("cpu"), LORA[case.lora] if case.lora is not None else None
    model = build_model(config, case.fsdp, precision="fp32", device=device, seed=5, dtype=case.dtype, lora=lora)
    draw_adapters(model)
    if case.on_first:
        route_to_first(model)
    if case.mutant is not None:
        mutate(model, case.mutant)
    return model


VARIANTS: dict[str, tuple[Case, float]] = {
    "torch": (Case(None), 1e-10),
    "torch, all tokens to one expert": (Case(None, on_first=True), 1e-10),
    "grouped_mm, fp32": (Case(None, "grouped_mm", torch.float32), 1e-4),
    "grouped_mm, fp32, all tokens to one expert": (Case(None, "grouped_mm", torch.float32, on_first=True), 1e-4),
    "LoRA": (Case(None, lora="shared A"), 1e-10),
    "LoRA, all tokens to one expert": (Case(None, lora="shared A", on_first=True), 1e-10),
    "LoRA per expert": (Case(None, lora="A per expert"), 1e-10),
    "LoRA over nf4": (Case(None, lora="over nf4"), 1e-6),
}
ON_ALL_MESHES = ("torch", "torch, all tokens to one expert", "grouped_mm, fp32", "LoRA per expert")
"""Variants that are run here on every mesh. test_exactness.py, a proof, runs whole steps of all variants on all
meshes."""
CASES = [(mesh, name) for mesh in MESHES for name in VARIANTS if mesh == "EP 2" or name in ON_ALL_MESHES]
POLICIES: tuple[Literal["block", "selective"], ...] = ("block", "selective")


@pytest.fixture(scope="module")
def found() -> dict[tuple[str, str], dict[str, Tensor]]:
    """The results of each variant on each mesh, with one launch per number of ranks."""
    references = run_ranks(gradients_of, 1, [case for case, _ in VARIANTS.values()], timeout=150)[0]
    results = {("1 rank", name): each for name, each in zip(VARIANTS, references, strict=True)}
    for size in (2, 4):
        cases: dict[tuple[str, str], Case] = {}
        for mesh, (its_size, fsdp) in MESHES.items():
            if its_size != size:
                continue
            cases |= {
                (mesh, name): replace(case, fsdp=fsdp) for name, (case, _) in VARIANTS.items() if (mesh, name) in CASES
            }
            cases[mesh, "without the factor"] = Case(fsdp, mutant="without the factor")
            if mesh == "EP 2":
                cases[mesh, "detached router"] = Case(fsdp, mutant="detached router")
                for name in ("torch", "LoRA"):
                    for policy in POLICIES:
                        its = replace(fsdp, activation_checkpointing=policy)
                        cases[mesh, f"{name}, {policy}"] = replace(VARIANTS[name][0], fsdp=its)
                cases[mesh, "torch, offloaded"] = Case(replace(fsdp, activation_cpu_offload=True))
                cases[mesh, "torch, gathered"] = Case(replace(fsdp, reshard_after_forward=False))
        each_rank = run_ranks(gradients_of, size, list(cases.values()), timeout=200)
        results |= zip(cases, each_rank[0], strict=True)
    return results


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("mesh", "variant"), CASES)
def test_gradients_are_those_of_one_rank(found: dict[tuple[str, str], Any], mesh: str, variant: str) -> None:
    assert difference(found[mesh, variant], found["1 rank", variant]) <= VARIANTS[variant][1]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("variant", ["torch, block", "torch, selective", "torch, offloaded", "torch, gathered"])
def test_activation_checkpointing_changes_no_gradient(found: dict[tuple[str, str], Any], variant: str) -> None:
    assert difference(found["EP 2", variant], found["1 rank", "torch"]) <= 1e-10


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("variant", ["LoRA, block", "LoRA, selective"])
def test_activation_checkpointing_changes_no_adapter_gradient(found: dict[tuple[str, str], Any], variant: str) -> None:
    assert difference(found["EP 2", variant], found["1 rank", "LoRA"]) <= 1e-10


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("mesh", MESHES)
def test_without_the_factor_gradients_of_experts_are_too_large(found: dict[tuple[str, str], Any], mesh: str) -> None:
    """FSDP2 averages only over the ranks that have the same experts."""
    degree = MESHES[mesh][1].expert_parallel_degree
    mutant, reference = found[mesh, "without the factor"], found["1 rank", "torch"]
    assert float(mutant["loss"]) == pytest.approx(float(reference["loss"]), rel=1e-12), "the loss does not show it"
    for name, expected in reference.items():
        factor = degree if ".experts." in name else 1
        assert torch.allclose(mutant[name], factor * expected, rtol=1e-8, atol=1e-12), name


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_only_its_gradient_shows_a_detached_router(found: dict[tuple[str, str], Any]) -> None:
    mutant, reference = found["EP 2", "detached router"], found["1 rank", "torch"]
    assert float(mutant["loss"]) == pytest.approx(float(reference["loss"]), rel=1e-12), "the loss does not show it"
    routers = [name for name in reference if ".router." in name]
    assert routers
    for name in routers:
        assert difference({name: mutant[name]}, {name: reference[name]}) > 0.1, name


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_experts_without_tokens_and_routers_have_gradients(found: dict[tuple[str, str], Any]) -> None:
    grads = found["EP 4", "torch, all tokens to one expert"]
    w1 = grads["transformer.blocks.0.ffn.experts.mlp.w1"]
    assert torch.count_nonzero(w1[24:]) == 0
    assert torch.count_nonzero(w1[:24])
    assert all(torch.count_nonzero(grad) for name, grad in grads.items() if "router" in name)


class Ramp:
    """Pretrained weights with known values."""

    def __contains__(self, name: str) -> bool:
        return True

    def rows(self, name: str, start: int, stop: int, out: Tensor) -> None:
        out.copy_(_ramp(stop - start, out.shape[1:].numel(), start).view(out.shape))


def _ramp(rows: int, columns: int, first: int) -> Tensor:
    return torch.arange(first * columns, (first + rows) * columns, dtype=torch.float32)


def imported_and_saved(folder: Path, fsdps: dict[str, FSDPConfig]) -> dict[str, dict[str, Tensor]]:
    """Build a model from pretrained weights, and save it with all parts of a checkpoint."""
    from composer.utils import dist as composer_dist
    from composer.utils import get_device

    from tests.helpers.saved_checkpoints import write_checkpoint
    from train.checkpoint.load import saved_tensors
    from train.distributed.build_model import build_model

    composer_dist.initialize_dist(get_device("cpu"), timeout=60)
    found = {}
    for name, fsdp in fsdps.items():
        device = torch.device("cpu")
        model = build_model(SMALL, fsdp, precision="fp32", device=device, seed=5, pretrained=Ramp())
        found[name] = {name: whole(param) for name, param in model.named_parameters()}
        optimizer = torch.optim.SGD(model.parameters())
        write_checkpoint(folder / name, saved_tensors(model, optimizer), config=CONFIG)
    return found


def test_pretrained_weights_and_exports_are_the_same_at_every_degree(tmp_path: Path) -> None:
    for size, fsdps in (
        (1, {"one": FSDPConfig()}),
        (2, {"ep2": EP2}),
        (4, {"ep4": EP4, "ep2x2": EP2, "hybrid": HYBRID_EP2}),
    ):
        for name, weights in run_ranks(imported_and_saved, size, tmp_path, fsdps)[0].items():
            for param_name, weight in weights.items():
                columns = weight.shape[1:].numel()
                assert torch.equal(weight.flatten(), _ramp(weight.shape[0], columns, 0)), (name, param_name)
            write_save_folder(tmp_path / name)
            export(tmp_path / name / "ep0-ba10", tmp_path / f"hf-{name}", "fp32")
    files = sorted(file.name for file in (tmp_path / "hf-one").glob("*.safetensors"))
    assert files
    for name in ("ep2", "ep4", "ep2x2", "hybrid"):
        for file in files:
            assert (tmp_path / f"hf-{name}" / file).read_bytes() == (tmp_path / "hf-one" / file).read_bytes()


@pytest.mark.parametrize(
    ("world_size", "overrides", "text"),
    [
        (4, ["fsdp_config.expert_parallel_degree=3"], "is 3, but it must divide model.ffn_config.moe_num_experts (4)"),
        (
            6,
            ["fsdp_config.expert_parallel_degree=4"],
            "is 4, but it must divide the number of ranks over which a replica is sharded (6)",
        ),
        (
            4,
            [
                "fsdp_config={sharding_strategy: HYBRID_SHARD, data_parallel_replicate_degree: 2}",
                "fsdp_config.expert_parallel_degree=4",
            ],
            "is 4, but it must divide the number of ranks over which a replica is sharded (2)",
        ),
        (
            8,
            ["fsdp_config.expert_parallel_degree=2", "model.ffn_config.ffn_hidden_size=49"],
            "moe_num_experts x ffn_hidden_size = 196 rows cannot be divided evenly over 8 ranks",
        ),
    ],
)
def test_degrees_that_do_not_divide_are_refused(
    tmp_path: Path, world_size: int, overrides: list[str], text: str
) -> None:
    path = write_toy_run(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(text)) as caught:
        check_world_size(read_config(path, [*overrides, "global_train_batch_size=24"]), world_size)
    assert "fsdp_config.expert_parallel_degree" in str(caught.value)
