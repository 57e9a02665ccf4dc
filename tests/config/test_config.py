import dataclasses
import re
from dataclasses import replace
from pathlib import Path

import pytest

from data.base.errors import ConfigError
from data.config.build import build
from data.config.tokenizer import TokenizerConfig
from tests.helpers.small_config import load, refusal
from train.config.load import read_config
from train.config.ranks import check_kernel_sizes, check_run_name, check_world_size, routed_sizes
from train.config.redaction import differing
from train.config.schema import TrainConfig

ROOT = Path(__file__).resolve().parents[2]


def test_configs_are_frozen_all_the_way_down(tmp_path):
    def below(node):
        yield node
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if dataclasses.is_dataclass(value):
                yield from below(value)

    clipping = "algorithms.gradient_clipping={clipping_type: norm, clipping_threshold: 1}"
    config = load(tmp_path, "callbacks.lr_monitor={}", "loggers.wandb={}", clipping)
    nodes = list(below(config))
    assert len(nodes) > 12
    assert all(node.__dataclass_params__.frozen for node in nodes)


def test_differing_lists_values_that_are_not_defaults(tmp_path):
    groups = "optimizer.param_groups=[{match: ['*.wte.*'], lr: 0.1}]"
    config = load(tmp_path, "callbacks.lr_monitor={}", "optimizer.lr=0.5", "loggers.wandb={tags: [a]}", groups)
    found = differing(config)
    assert found["optimizer.lr"] == 0.5
    assert found["callbacks.lr_monitor"] == {}
    assert found["loggers.wandb.tags"] == ["a"]
    assert found["optimizer.param_groups"] == [{"match": ["*.wte.*"], "lr": 0.1}]
    assert {"max_seq_len", "max_duration"} <= found.keys()  # they have no default
    assert not {"seed", "optimizer.eps", "callbacks", "loggers"} & found.keys()


def test_global_batch_must_be_divisible_by_ranks(tmp_path):
    config = load(tmp_path)
    check_world_size(config, 4)
    with pytest.raises(
        ValueError, match=r"global_train_batch_size is 8, but it must be divisible by the number of ranks \(3\)"
    ):
        check_world_size(config, 3)


def test_replicas_must_divide_the_ranks(tmp_path):
    config = load(tmp_path, "fsdp_config={sharding_strategy: HYBRID_SHARD, data_parallel_replicate_degree: 2}")
    check_world_size(config, 4)
    with pytest.raises(
        ValueError, match=r"data_parallel_replicate_degree is 2, but it must divide the number of ranks \(1\)"
    ):
        check_world_size(config, 1)


def test_microbatch_that_megablocks_cannot_address(tmp_path):
    sizes = ["model={preset: tiny, d_model: 6144, n_heads: 48, ffn_config: {moe_top_k: 4, moe_impl: megablocks}}"]
    sizes += ["device_train_microbatch_size=1366", "global_train_batch_size=4096"]
    config = load(tmp_path, *sizes)  # 1366 x 64 = 87,424 tokens
    message = r"device_train_microbatch_size \(1,366\) x max_seq_len \(64\) x .* is 2,148,532,224, which must be below"
    with pytest.raises(ValueError, match=message):
        check_kernel_sizes(config, 1)
    check_kernel_sizes(config, 4)  # a rank has 1024 rows
    check_kernel_sizes(load(tmp_path, *sizes, "model.ffn_config.moe_impl=grouped_mm"), 1)
    evaluated = "eval_loader={name: finetuning, dataset: {hf_name: json, max_seq_len: 64}}"
    with pytest.raises(ValueError, match=r"lower device_eval_batch_size or max_seq_len"):
        check_kernel_sizes(load(tmp_path, *sizes, evaluated, "device_eval_batch_size=1366"), 4)


@pytest.mark.parametrize(("rows", "allowed"), [(1023, True), (1024, False)])
def test_kernel_sizes_include_tokens_of_all_expert_parallel_ranks(tmp_path, rows: int, allowed: bool) -> None:
    # 1024 rows x 64 tokens x 8 ranks x 2 experts per rank x d_model 2048 = 2**31; on one rank, top-4 is half of that.
    model = "model={preset: tiny, d_model: 2048, ffn_config: {moe_num_experts: 16, moe_top_k: 4, moe_impl: megablocks}}"
    sizes = [f"device_train_microbatch_size={rows}", "global_train_batch_size=65536", model]
    parallel = "fsdp_config.expert_parallel_degree=8"
    check_kernel_sizes(load(tmp_path, *sizes), 8)
    config = load(tmp_path, *sizes, parallel)
    assert routed_sizes(config, rows) == (rows * 64 * 8, 2, 2048)
    if allowed:
        check_kernel_sizes(config, 8)
        return
    message = (
        r"moe_impl is megablocks, .* device_train_microbatch_size \(1,024\) x max_seq_len \(64\) x "
        r"fsdp_config.expert_parallel_degree \(8\) x experts per token on one rank \(2\) x model.d_model \(2,048\) is "
        r"2,147,483,648, which must be below 2\*\*31 = 2,147,483,648: .* use grouped_mm or auto"
    )
    with pytest.raises(ValueError, match=message):
        check_kernel_sizes(config, 8)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fsdp_config.sharding_strategy=HYBRID_SHARD", "HYBRID_SHARD requires the number of replicas"),
        ("fsdp_config.data_parallel_replicate_degree=2", "FULL_SHARD requires null"),
        ("max_duration=1dur", "max_duration is '1dur', but dur is a fraction of max_duration itself"),
        ("max_duration=0ba", "must be longer than 0"),
        ("eval_interval=10", "eval_interval is 10"),
        ("eval_interval=soon", "eval_interval is 'soon', but a duration must be a number and a unit"),
        ("scheduler.t_warmup=9999ba", "scheduler.t_warmup is 9999ba, but max_duration is only"),
        (
            "scheduler={name: wsd_with_warmup, t_decay: 1dur, t_warmup: 1ba}",
            "t_decay is 1dur, but together with scheduler.t_",
        ),
        ("scheduler.t_warmup=1.1dur", "scheduler.t_warmup is 1.1dur, but max_duration is only"),
        ("scheduler.t_warmup=1.5ba", "scheduler.t_warmup is '1.5ba', but a duration in ba must be an integer"),
        ("train_loader.dataset.max_seq_len=32", "train_loader.dataset.max_seq_len is 32, but max_seq_len is 64"),
        ("tokenizer.kwargs.model_max_length=32", "tokenizer.kwargs.model_max_length is 32, but max_seq_len is 64"),
        ("tokenizer.kwargs.model_name=gpt-4", "tokenizer.kwargs.model_name requires `name: tiktoken`"),
        ("tokenizer.name=tiktoken", "tokenizer.kwargs requires exactly one of model_name, encoding_name, vocab_file"),
        ("train_loader.num_workers=-1", "train_loader.num_workers is -1"),
        (
            "train_loader.dataset.preprocessing_fn={q: a}",
            "must be {prompt: COLUMN, response: COLUMN} or {messages: COLUMN} or {text: COLUMN}",
        ),
        ("algorithms.gradient_clipping={clipping_type: norm, clipping_threshold: 0}", "clipping_threshold is 0.0"),
    ],
)
def test_invalid_configs_are_refused(tmp_path, override, message):
    assert message in refusal(tmp_path, override)


def test_every_field_of_every_config_can_be_built_from_its_own_value(tmp_path):
    config = replace(load(tmp_path), run_name="x")
    assert build(TrainConfig, dataclasses.asdict(config)) == config


def test_autoresume_without_a_run_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("RUN_NAME", raising=False)
    with pytest.raises(ValueError, match="autoresume is true, but without run_name"):
        check_run_name(load(tmp_path, "autoresume=true", "save_folder='runs/{run_name}'"))
    check_run_name(load(tmp_path, "autoresume=true", "save_folder=runs/fixed"))
    monkeypatch.setenv("RUN_NAME", "mine")
    check_run_name(load(tmp_path, "autoresume=true", "save_folder='runs/{run_name}'"))


def test_text_that_is_not_utf_8_names_its_key():
    with pytest.raises(ConfigError, match=r"tokenizer.name is 'a.udcff', which is not UTF-8"):
        build(TokenizerConfig, {"name": "a\udcff"}, "tokenizer")


@pytest.mark.parametrize("length", ["2ba", "600tok"])
def test_all_overrides_for_a_short_test_are_suggested_together(length):
    curriculum = str(ROOT / "yamls" / "pretrain" / "dbrx_tiny_curriculum.yaml")
    unit = length.lstrip("0123456789")
    overrides = [f"max_duration={length}", f"scheduler.t_warmup=999{unit}", f"train_loader.stages.0.duration=999{unit}"]
    with pytest.raises(ConfigError) as error:
        read_config(curriculum, overrides)
    suggested = re.findall(r"for a short test, set (.*)", str(error.value))
    assert suggested == ["train_loader.stages=[]", "scheduler.t_warmup=0ba"]
    assert read_config(curriculum, [*overrides, *suggested]).max_duration == length
