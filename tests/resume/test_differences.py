"""The keys in which two configs differ. Other spellings of the same value are not a difference."""

from pathlib import Path

import pytest

from tests.helpers.small_config import LEAST, load
from train.resume.differences import differences

DATASET = "train_loader.dataset"
STREAMS = LEAST.replace(
    "{hf_name: json, max_seq_len: '${max_seq_len}'}",
    "{max_seq_len: '${max_seq_len}', streams: {web: {hf_name: json}, code: {remote: 's3://bucket/code'}}}",
)


def changed(folder: Path, was: list[str], now: list[str], text: str = LEAST) -> list[str]:
    found = differences(load(folder, *was, text=text), load(folder, *now, text=text))
    return [f"{difference.key} {difference}" for difference in found]


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ([], ["seed=17", "optimizer.eps=1e-8", "callbacks={}", "fsdp_config={}"]),
        (["optimizer.lr=1e-3"], ["optimizer.lr=0.001"]),
        (["optimizer.lr=1"], ["optimizer.lr=1.0"]),
        (["max_duration=100ba"], ["max_duration='100ba'"]),
        (["save_interval=1ep"], ["save_interval=' 1.0ep'"]),
        (["save_folder=runs/{run_name}"], [f"save_folder={Path.cwd()}/./runs/{{run_name}}/"]),
        (
            ["train_loader.dataset.hf_kwargs.data_files=a.jsonl"],
            ["train_loader.dataset.hf_kwargs.data_files=[./a.jsonl]"],
        ),
        (["fsdp_config.activation_checkpointing=true"], ["fsdp_config.activation_checkpointing=block"]),
        (
            ["lora={r: 2, alpha: 4, target_modules: [attn]}"],
            ["lora={r: 2, alpha: 4, target_modules: [out_proj, Wqkv]}"],
        ),
    ],
)
def test_another_spelling_of_a_value_is_not_a_change(tmp_path: Path, was: list[str], now: list[str]) -> None:
    assert changed(tmp_path, was, now) == []


def test_credentials_and_sizes_are_compared_by_meaning(tmp_path: Path) -> None:
    place, limit = "train_loader.dataset.streams.code.remote=s3://", "train_loader.dataset.cache_limit="
    was = [f"{place}key:secret@bucket/code", f"{limit}1gb"]
    assert changed(tmp_path, was, [f"{place}bucket/code/", f"{limit}{2**30}"], STREAMS) == []
    (line,) = changed(tmp_path, was, [f"{place}key:secret@other/code", f"{limit}1gb"], STREAMS)
    assert line.startswith("train_loader.dataset.streams.code.remote was s3://***@bucket/code, now s3://***@other/")
    assert "secret" not in line


def test_keys_are_named_as_in_the_yaml(tmp_path: Path) -> None:
    stage = "{{name: {}, duration: 5ba, proportions: {{web: 1, code: 1}}}}"
    stages = f"train_loader.stages=[{stage.format('one')}, {stage.format('two')}]"
    now = ["train_loader.stages.1.duration=4ba", "train_loader.stages.1.proportions.code=0.5"]
    now += ["train_loader.dataset.streams={web: {hf_name: csv}, code: {remote: 's3://bucket/code'}}"]
    assert changed(tmp_path, [stages], [stages, *now], STREAMS) == [
        "train_loader.dataset.streams.web.hf_name was json, now csv",
        "train_loader.stages[1].duration was 5ba, now 4ba",
        "train_loader.stages[1].proportions.code was 1.0, now 0.5",
    ]


def test_a_section_that_only_one_config_has_is_one_difference(tmp_path: Path) -> None:
    now = ["train_loader.dataset.streams.math={text: math.txt, split: null}", "algorithms.gradient_clipping=null"]
    now += ["optimizer.param_groups=[{match: ['*.wte.*'], lr: 1e-5}]"]
    was = ["algorithms.gradient_clipping={clipping_type: norm, clipping_threshold: 1}"]
    assert changed(tmp_path, was, now, STREAMS) == [
        "train_loader.dataset.streams.math was absent, now {text: math.txt}",
        "optimizer.param_groups[0] was absent, now {match: ['*.wte.*'], lr: 1.0e-05}",
        "algorithms.gradient_clipping was {clipping_type: norm, clipping_threshold: 1.0}, now null",
    ]
