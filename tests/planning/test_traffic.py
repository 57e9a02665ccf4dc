from pathlib import Path

import pytest

from tests.helpers.small_config import load
from train.config.load import read_config
from train.config.schema import TrainConfig
from train.models.shapes import adapter_shapes, count_parameters, parameter_sizes
from train.planning.traffic import traffic
from train.planning.units import units

YAMLS = Path(__file__).parents[2] / "yamls" / "finetune"


def sent(config: TrainConfig, ranks: int, *, gpu: bool = True) -> dict[tuple[str, str], float]:
    return {(each.kind, each.dim.name): each.n_bytes for each in traffic(config, ranks, gpu=gpu)}


def test_the_132b_on_64_ranks() -> None:
    found = sent(read_config(str(YAMLS / "dbrx.yaml")), 64)
    # Gathered twice in bf16, reduced once in fp32; 63/64 comes from other ranks.
    each = 4 * count_parameters(read_config(str(YAMLS / "dbrx.yaml")).model)[0] * 63 / 64
    assert found == {
        ("all-gather", "shard"): pytest.approx(each, rel=1e-4),
        ("reduce-scatter", "shard"): pytest.approx(each, rel=1e-4),
    }


def test_the_132b_with_expert_parallelism() -> None:
    config = read_config(str(YAMLS / "dbrx.yaml"), ["fsdp_config.expert_parallel_degree=8"])
    found, sizes = sent(config, 64), parameter_sizes(config.model)
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    assert found["all-gather", "expert_shard"] == 4 * experts / 8 * 7 / 8
    assert found["all-gather", "shard"] == pytest.approx(4 * (sum(sizes.values()) - experts) * 63 / 64, rel=3e-3)
    # To the experts and back in forward and in backward, and to them once more, because blocks are recomputed.
    tokens = 5 * 40 * 4096 * 4 * 6144 * 2 * 7 / 8
    assert found["all-to-all", "expert"] == pytest.approx(tokens, rel=1e-3)


def test_replicas_reduce_their_shards(tmp_path: Path) -> None:
    hybrid = "fsdp_config={sharding_strategy: HYBRID_SHARD, data_parallel_replicate_degree: 2}"
    found = sent(load(tmp_path, hybrid, "device_train_microbatch_size=2"), 4)
    total = count_parameters(load(tmp_path).model)[0]
    assert found == {
        ("all-gather", "shard"): 2 * 2 * total / 2,
        ("reduce-scatter", "shard"): 4 * total / 2,
        ("all-reduce", "replicate"): 2 * 4 * (total / 2) / 2,
    }


def test_microbatches_gather_and_reduce_each(tmp_path: Path) -> None:
    one, four = load(tmp_path, "device_train_microbatch_size=4"), load(tmp_path)
    assert sent(four, 2) == {key: 4 * n_bytes for key, n_bytes in sent(one, 2).items()}
    counting = sent(load(tmp_path, "model.ffn_config.moe_lbl_scope=batch"), 2)
    assert counting["all-gather", "shard"] == 1.5 * sent(four, 2)["all-gather", "shard"]
    kept = sent(load(tmp_path, "fsdp_config={reshard_after_forward: false}"), 2)
    assert kept["all-gather", "shard"] == sent(four, 2)["all-gather", "shard"] / 2


def test_precision_decides_the_width(tmp_path: Path) -> None:
    total = count_parameters(load(tmp_path).model)[0]
    for mixed, gathered, reduced in (("DEFAULT", 2, 4), ("PURE", 2, 2), ("FULL", 4, 4)):
        found = sent(load(tmp_path, f"fsdp_config.mixed_precision={mixed}", "device_train_microbatch_size=4"), 2)
        assert found["all-gather", "shard"] == gathered * total
        assert found["reduce-scatter", "shard"] == reduced * total / 2
    assert sent(load(tmp_path, "device_train_microbatch_size=4"), 2, gpu=False)["all-gather", "shard"] == 4 * total


def test_ddp_reduces_once_a_step(tmp_path: Path) -> None:
    config = load(tmp_path, "fsdp_config=null")
    assert sent(config, 4) == {("all-reduce", "data"): 2 * 4 * count_parameters(config.model)[0] * 3 / 4}


def test_one_rank_sends_nothing(tmp_path: Path) -> None:
    assert traffic(load(tmp_path), 1) == []
    assert traffic(load(tmp_path, "fsdp_config=null"), 1) == []


def test_a_frozen_base_is_gathered_and_not_reduced(tmp_path: Path) -> None:
    config = load(tmp_path, "lora={r: 4, alpha: 8, target_modules: [attn]}", "device_train_microbatch_size=4")
    assert config.lora is not None
    sizes = parameter_sizes(config.model)
    adapters = sum(rows * columns for rows, columns in adapter_shapes(config.model, config.lora).values())
    # The embedding is gathered twice too, although no gradient reaches it: it precedes the first block.
    found = sent(config, 2)
    assert found["all-gather", "shard"] == 2 * 2 * (sum(sizes.values()) + adapters) / 2
    assert found["reduce-scatter", "shard"] == 4 * adapters / 2


def test_padding_is_included_in_traffic(tmp_path: Path) -> None:
    config = load(tmp_path, "lora={r: 2, alpha: 8, target_modules: [out_proj]}")
    adapter = next(unit for unit in units(config, gpu=True) if unit.name.endswith("out_proj.lora"))
    # The 2 rows of A, with 64 numbers each, are sharded over 8 ranks: with padding, each rank has one row.
    assert (adapter.copies, adapter.shard_size(8)) == (2, 64 + 64 * 2 // 8)


def test_backward_gathers_only_the_last_of_the_blocks_it_does_not_reach(tmp_path: Path) -> None:
    freeze = "optimizer.freeze=['*.wte.*', '*.blocks.0.*', '*.blocks.1.*']"
    config = load(tmp_path, freeze, "device_train_microbatch_size=4", "model.n_layers=3")
    sizes = parameter_sizes(config.model)
    frozen = sum(size for name, size in sizes.items() if ".blocks.0." in name or ".wte." in name)
    assert sent(config, 2)["all-gather", "shard"] == 2 * (2 * sum(sizes.values()) - frozen) / 2
