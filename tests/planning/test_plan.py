import math
from types import SimpleNamespace

import pytest
import torch

from data.base.errors import ConfigError
from tests.helpers.small_config import load
from train.hardware import memory as machine_memory
from train.hardware.device import Device
from train.models.config import ModelConfig
from train.models.flops import flops_per_token
from train.models.shapes import count_parameters, parameter_shapes
from train.planning import machine as planned_machine
from train.planning.machine import check_machine, ranks_that_fit
from train.planning.memory import memory_per_rank
from train.planning.peak import memory_parts
from train.planning.summary import checkpoints_line, parameters_line

BIG = ("model.preset=132b", "optimizer.name=decoupled_lionw", "max_seq_len=4096", "global_train_batch_size=64")


def machine(monkeypatch, *, cpu: float = 16e9, gpu: float = 0.0, local_ranks: int = 1) -> None:
    monkeypatch.setattr(planned_machine, "gpu_memory", lambda: gpu)
    monkeypatch.setattr(planned_machine, "cpu_memory", lambda: cpu)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local_ranks))


def refusal(config, world_size: int, device: Device = "cpu") -> str:
    with pytest.raises(ConfigError) as caught:
        check_machine(config, world_size, device)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parameters_of_the_132b():
    total, active = count_parameters(ModelConfig())
    assert total == 131_596_523_520
    assert parameters_line(ModelConfig()) == "parameters: 131,596,523,520 (36.47 B active)"
    assert active == total - 40 * 12 * 3 * 10752 * 6144


def test_names_and_shapes_are_those_of_the_model(tmp_path):
    from train.models.dbrx import DbrxForCausalLM

    config = load(tmp_path, "model.ffn_config.moe_num_experts=5").model
    with torch.device("meta"):
        model = DbrxForCausalLM(config)
    assert parameter_shapes(config) == {name: tuple(param.shape) for name, param in model.named_parameters()}


def test_flops_of_the_132b_are_six_a_parameter_and_attention():
    assert flops_per_token(ModelConfig(), 4096) == pytest.approx(6 * 35.85e9 + 12 * 40 * 4096 * 6144, rel=1e-3)


@pytest.mark.parametrize(
    ("overrides", "bytes_a_parameter"),
    [
        (["optimizer.name=adamw"], 16),
        (["optimizer.name=decoupled_lionw"], 12),
        (["optimizer.name=sgd"], 8),
        (["optimizer.name=sgd", "optimizer.momentum=0.9"], 12),
        (["optimizer.freeze=['*']"], 4),
    ],
)
def test_states_are_sharded_and_frozen_parameters_have_none(tmp_path, overrides, bytes_a_parameter):
    config = load(tmp_path, *overrides)
    total = count_parameters(config.model)[0]
    assert memory_per_rank(config, 4, gpu=False).states == total * bytes_a_parameter / 4


def test_states_of_frozen_parameters_by_name(tmp_path):
    config = load(tmp_path, "optimizer.freeze=['*.wte.*', 'lm_head.*']")
    model = config.model
    embeddings = 2 * model.vocab_size * model.d_model
    assert memory_per_rank(config, 1, gpu=False).states == 16 * count_parameters(model)[0] - 12 * embeddings


def test_replicas_and_ddp_do_not_share_states(tmp_path):
    whole = memory_per_rank(load(tmp_path), 1, gpu=False).states
    hybrid = load(tmp_path, "fsdp_config={sharding_strategy: HYBRID_SHARD, data_parallel_replicate_degree: 2}")
    assert memory_per_rank(hybrid, 4, gpu=False).states == whole / 2
    assert memory_per_rank(load(tmp_path, "fsdp_config=null"), 4, gpu=False).states == whole


def test_gathered_units_and_activations(tmp_path):
    config = load(tmp_path, "device_train_microbatch_size=2")
    gpu, cpu = memory_per_rank(config, 2, gpu=True), memory_per_rank(config, 2, gpu=False)
    shapes = parameter_shapes(config.model)
    block = sum(math.prod(shape) for name, shape in shapes.items() if ".blocks.0." in name)
    assert (gpu.gathered, cpu.gathered) == (2 * block, 4 * block)
    assert memory_per_rank(config, 1, gpu=True).gathered == 0
    unsharded = load(tmp_path, "fsdp_config={reshard_after_forward: false}")
    assert memory_per_rank(unsharded, 2, gpu=False).gathered == 4 * count_parameters(config.model)[0]
    kept = memory_per_rank(load(tmp_path, "model.n_layers=4"), 2, gpu=False)
    again = load(tmp_path, "model.n_layers=4", "fsdp_config={activation_checkpointing: true}")
    assert memory_per_rank(again, 2, gpu=False).activations < kept.activations / 2
    assert cpu.activations == 2 * memory_per_rank(load(tmp_path), 2, gpu=False).activations


def test_activations_are_the_minimum_that_autograd_keeps(tmp_path):
    from train.models.dbrx import DbrxForCausalLM

    config = load(tmp_path, "model.vocab_size=16")
    kept: dict[int, int] = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model = DbrxForCausalLM(config.model)
    torch.nn.init.normal_(model.transformer.wte.weight)
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.02)
    ids = torch.randint(16, (1, 64))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(ids, ids, torch.zeros_like(ids))
    weights = sum(kept.get(param.untyped_storage().data_ptr(), 0) for param in model.parameters())
    planned = memory_per_rank(config, 1, gpu=False).activations
    assert planned <= sum(kept.values()) - weights <= 3 * planned


def test_a_run_that_fits_is_accepted(tmp_path, monkeypatch):
    machine(monkeypatch, cpu=1e9, local_ranks=2)
    check_machine(load(tmp_path), 2, "cpu")


def test_less_memory_than_predicted_gives_a_warning(tmp_path, monkeypatch, caplog):
    config = load(tmp_path)
    bound, predicted = memory_per_rank(config, 2, gpu=True).total, memory_parts(config, 2, gpu=True).total
    assert bound < predicted
    machine(monkeypatch, gpu=predicted)
    check_machine(config, 2, "gpu")
    assert caplog.messages == []
    machine(monkeypatch, gpu=predicted - 1)
    check_machine(config, 2, "gpu")
    (line,) = caplog.messages
    assert line.startswith("memory may be insufficient: each of 2 ranks is predicted to need ")
    machine(monkeypatch, gpu=bound - 1)
    assert "do not fit" in refusal(config, 2, "gpu")


def test_cpu_machine_that_is_too_small(tmp_path, monkeypatch):
    machine(monkeypatch, cpu=400e9, local_ranks=2)
    line = refusal(load(tmp_path, *BIG), 2)
    assert line.startswith("131,596,523,520 parameters do not fit: each of 2 ranks needs at least ")
    assert "but there is no GPU, and this machine has 186.26gb for each rank; at least " in line
    assert line.endswith(" such machines are needed, or 64 GPUs with 80gb")


def test_no_number_of_these_machines_is_sufficient(tmp_path, monkeypatch):
    machine(monkeypatch, cpu=4e9)
    line = refusal(load(tmp_path, *BIG), 1)
    assert line.endswith("the run does not fit on any number of such machines: at least 64 GPUs with 80gb are needed")


def test_gpus_that_are_too_few(tmp_path, monkeypatch):
    machine(monkeypatch, gpu=80e9)
    config = load(tmp_path, *BIG, "fsdp_config={activation_checkpointing: true}")
    line = refusal(config, 8, "gpu")
    assert "but its GPU has 74.5gb; at least " in line
    ranks = ranks_that_fit(config, 80e9, gpu=True)
    assert ranks is not None
    assert f"at least {ranks} such GPUs" in line
    check_machine(config, ranks, "gpu")
    assert "parameters do not fit" in refusal(config, ranks - 1, "gpu")


def test_ddp_without_enough_memory_suggests_sharding(tmp_path, monkeypatch):
    machine(monkeypatch)
    assert "remove `fsdp_config: null` to shard the states" in refusal(load(tmp_path, *BIG, "fsdp_config=null"), 8)


@pytest.mark.parametrize(
    ("membership", "file"),
    [
        ("0::/a/b\n", "a/memory.max"),
        ("0::/a/b\n", "memory.max"),
        ("4:memory:/a\n0::/\n", "memory/a/memory.limit_in_bytes"),
        ("4:cpu,memory:/of/the/host\n", "memory/memory.limit_in_bytes"),
    ],
)
def test_control_groups_limit_the_memory(tmp_path, membership, file):
    (tmp_path / "cgroup").write_text(membership)
    limit = tmp_path / "fs" / file
    limit.parent.mkdir(parents=True)
    limit.write_text("1234\n")
    assert machine_memory.cgroup_limits(tmp_path / "cgroup", tmp_path / "fs") == [1234]
    limit.write_text("max\n")
    assert machine_memory.cgroup_limits(tmp_path / "cgroup", tmp_path / "fs") == []


def test_control_groups_have_memory_left(tmp_path):
    (tmp_path / "cgroup").write_text("0::/a\n4:memory:/b\n")
    files = {
        "a/memory.max": "1000",
        "a/memory.current": "900",
        "a/memory.stat": "anon 500\ninactive_file 300",
        "memory.max": "max",
        "memory.current": "950",
        "memory/b/memory.limit_in_bytes": "2000",
        "memory/b/memory.usage_in_bytes": "2500",
        "memory/b/memory.stat": "inactive_file 0\ntotal_inactive_file 100",
    }
    for name, text in files.items():
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(text + "\n")
    assert machine_memory.cgroup_free(tmp_path / "cgroup", tmp_path / "fs") == [400, 0]
    assert 0 < machine_memory.free_cpu_memory() <= machine_memory.cpu_memory()


def test_memory_of_this_machine_is_the_least_of_all(monkeypatch):
    monkeypatch.setattr(machine_memory, "cgroup_limits", lambda *_: [2**62, 5])
    assert machine_memory.cpu_memory() == 5


def test_memory_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=[7, 9][device])
    )
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert machine_memory.gpu_memory() == 9


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        (["save_interval=4ba"], "all 3 are kept: at most "),
        (["max_duration=10000tok", "save_interval=0.1dur"], "all 10 are kept: at most "),
        (["save_interval=1ep"], "all are kept, "),
        (["save_interval=1ep", "save_num_checkpoints_to_keep=2"], "the newest 2 are kept: at most "),
    ],
)
def test_checkpoints_are_planned_as_far_as_the_config_says(tmp_path, overrides, kept) -> None:
    line = checkpoints_line(load(tmp_path, *overrides), tmp_path, 1)
    assert line.startswith("checkpoints: ")
    assert f" each, {kept}" in line
    assert line.endswith(f" are free in {tmp_path}")


def test_activation_checkpointing_keeps_less(tmp_path) -> None:
    def kept(policy: str, *overrides: str) -> float:
        checkpointed = load(tmp_path, "model.preset=132b", f"fsdp_config.activation_checkpointing={policy}", *overrides)
        return memory_per_rank(checkpointed, 64, gpu=True).activations

    assert kept("none") > kept("selective") > kept("block")
    assert kept("none", "model.ffn_config.moe_recompute=true") < 0.4 * kept("none")
