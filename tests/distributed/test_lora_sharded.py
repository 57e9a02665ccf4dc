"""Adapters under FSDP2: separate units over a bf16 base, saved alone, resumed exactly."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from tests.helpers.watched_run import run
from train.checkpoint.reader import CheckpointReader
from train.checkpoint.save_folder import checkpoints
from train.config.load import read_config
from train.config.schema import FSDPConfig
from train.models.config import AttnConfig, FFNConfig, LoraConfig, ModelConfig
from train.models.shapes import adapter_shapes

pytestmark = pytest.mark.ranks

MODEL = ModelConfig(
    d_model=32,
    n_heads=4,
    n_layers=3,
    max_seq_len=32,
    vocab_size=48,
    attn_config=AttnConfig(kv_n_heads=2),
    ffn_config=FFNConfig(ffn_hidden_size=24, moe_num_experts=4, moe_top_k=2),
    initializer_range=0.3,
)
LORA = LoraConfig(r=3, alpha=5.0, target_modules=["attn", "experts", "router"], base_dtype="bf16")


def gradients(lora: LoraConfig, fsdp: FSDPConfig, seed: int) -> dict[str, Any]:
    """The gradients of the mean loss over the ranks' rows, and the dtypes of the stored tensors."""
    import torch.distributed as dist
    from composer.utils import dist as composer_dist
    from composer.utils import get_device

    from train.distributed.build_model import build_model
    from train.models.lora.adapters import is_adapter
    from train.models.recompute import named_parameters

    composer_dist.initialize_dist(get_device("cpu"), timeout=60)
    model = build_model(MODEL, fsdp, precision="fp32", device=torch.device("cpu"), seed=seed, lora=lora)
    with torch.no_grad():
        for name, param in named_parameters(model):
            if name.endswith("lora_B"):
                assert isinstance(param, DTensor)
                drawn = torch.randn(param.shape, generator=torch.Generator().manual_seed(1)) / 10
                param.copy_(distribute_tensor(drawn, param.device_mesh, param.placements))
    ids = torch.randint(0, 48, (4, 16), generator=torch.Generator().manual_seed(0))
    mine = ids.chunk(dist.get_world_size())[dist.get_rank()]
    for _ in range(2):
        # Twice, so that a second forward runs after backward.
        model.zero_grad()
        model(mine, mine.roll(-1, 1)).losses_BS.mean().backward()
    whole: dict[str, Tensor] = {}
    for name, param in named_parameters(model):
        assert isinstance(param, DTensor)
        assert param.dtype is (torch.float32 if is_adapter(name) or lora.base_dtype == "fp32" else torch.bfloat16)
        assert (param.grad is not None) == is_adapter(name), name
        if isinstance(param.grad, DTensor):
            whole[name] = param.grad.full_tensor()
    return whole


@pytest.mark.timeout(240)
@pytest.mark.parametrize("policy", ["none", "block", "selective"])
@pytest.mark.parametrize("per_expert", [False, True], ids=["shared", "per_expert"])
def test_two_ranks_get_the_gradients_of_one(policy: Any, per_expert: bool) -> None:
    lora = replace(LORA, per_expert=per_expert)
    one = run_ranks(gradients, 1, lora, FSDPConfig(), 5)[0]
    two = run_ranks(gradients, 2, lora, FSDPConfig(activation_checkpointing=policy), 5)[1]
    assert len(one) == 3 * 2 * 6
    assert one.keys() == two.keys()
    for name, expected in one.items():
        assert expected.abs().max() > 0, name
        assert torch.allclose(two[name], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())), name


ADAPTERS = [
    "lora={r: 4, alpha: 8, dropout: 0.1, target_modules: [attn, experts]}",
    "save_interval=4ba",
    "max_duration=8ba",
    "eval_interval=4ba",
]


@pytest.mark.timeout(300)
def test_a_killed_run_resumes_where_it_was(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    overrides = ["autoresume=true", *ADAPTERS]
    whole = run_ranks(run, 2, path, [*overrides, "run_name=whole"])[0]
    with pytest.raises(RuntimeError, match="exit codes"):
        run_ranks(run, 2, path, [*overrides, "run_name=killed"], 6)
    (checkpoint,) = checkpoints(tmp_path / "killed")
    config = read_config(path, overrides)
    assert config.lora is not None
    assert CheckpointReader(checkpoint).shapes == adapter_shapes(config.model, config.lora)
    resumed = run_ranks(run, 2, path, [*overrides, "run_name=killed"])[0]
    assert list(resumed["losses"]) == [5, 6, 7, 8]
    assert resumed["losses"] == {batch: loss for batch, loss in whole["losses"].items() if batch > 4}
    assert resumed["eval"] == {8: whole["eval"][8]}
    assert resumed["weights"].keys() == whole["weights"].keys()
    for name, expected in whole["weights"].items():
        assert torch.equal(resumed["weights"][name], expected), name


def refusal(path: str, overrides: list[str]) -> str:
    with pytest.raises(RuntimeError) as caught:
        run_ranks(run, 1, path, overrides)
    return str(caught.value).strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_checkpoint_of_a_whole_model_can_be_the_base(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    still = ["model.d_model=64", "eval_first=true", "max_duration=4ba", "save_interval=4ba", "eval_interval=4ba"]
    whole = run_ranks(run, 2, path, [*still, "run_name=whole"])[0]
    base = checkpoints(tmp_path / "whole")[-1]
    exact, rounded = (f"lora={{r: 4, alpha: 8, target_modules: [experts], base_dtype: {d}}}" for d in ("fp32", "nf4"))
    start = [*still, f"load_path={base}", "load_weights_only=true"]

    ours = run_ranks(run, 1, path, [*start, exact, "run_name=exact"])[0]
    assert ours["eval"][0] == pytest.approx(whole["eval"][4], rel=1e-5)
    kept = {name: weight for name, weight in ours["weights"].items() if "lora" not in name}
    assert kept.keys() == whole["weights"].keys()
    assert all(torch.equal(weight, whole["weights"][name]) for name, weight in kept.items())

    above_nf4 = run_ranks(run, 2, path, [*start, rounded, "run_name=rounded", "autoresume=true"])[0]
    assert above_nf4["eval"][0] == pytest.approx(whole["eval"][4], rel=0.02)
    assert above_nf4["eval"][0] != ours["eval"][0]
    longer = run_ranks(run, 2, path, [*start, rounded, "run_name=rounded", "autoresume=true", "max_duration=6ba"])[0]
    assert list(longer["losses"]) == [5, 6]

    message = refusal(path, [*still, rounded, "run_name=rounded", "autoresume=true", "max_duration=8ba"])
    assert "ep0-ba6 contains adapters that were trained on a different base than the one drawn from seed 17" in message

    message = refusal(path, [*still, exact, f"load_path={base}", "run_name=a"])
    assert "a whole model, from which a run with lora loads only" in message
    adapters = checkpoints(tmp_path / "exact")[-1]
    message = refusal(path, [*still, f"load_path={adapters}", "load_weights_only=true", "run_name=b"])
    assert "base_dtype: fp32}, now null (the checkpoint contains only adapters): restore the old value" in message
    message = refusal(path, [*still, exact.replace("r: 4", "r: 8"), f"load_path={adapters}", "run_name=c"])
    assert f"load_path is '{adapters}', but lora.r was 4, now 8 (the checkpoint's tensors have" in message
    other = exact.replace("base_dtype", "per_expert: true, base_dtype")
    message = refusal(path, [*still, other, f"load_path={adapters}", "load_weights_only=true", "run_name=f"])
    assert (
        "lora.per_expert was false, now true (the checkpoint's tensors have different shapes): restore the old value"
        in message
    )
    message = refusal(path, [*still, exact.replace("alpha: 8", "alpha: 9"), f"load_path={adapters}", "run_name=d"])
    assert "lora.alpha was 8.0, now 9.0 (the weights were trained with the old value): restore the old value" in message
    message = refusal(path, [*still, exact, f"load_path={adapters}", "run_name=e"])
    assert "trained on a different base than the one drawn from seed 17" in message
