"""Predicted sizes of checkpoints compared with real runs, and runs that are refused or warned."""

import contextlib
import io
import re
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from data.base.durations import Clock
from data.base.errors import ConfigError
from tests.helpers.ranks import run_ranks
from tests.helpers.small_config import load
from tests.helpers.toy_run import write_toy_run
from train.checkpoint.save_folder import checkpoints
from train.checkpoint.saving.space import (
    check_space,
    checkpoint_bytes,
    count_saves,
    describe_space,
    file_bytes,
    snapshot_bytes,
)
from train.config.load import read_config
from train.run.fit import fit

COMMON = ["eval_loader=null", "max_duration=1ba", "save_interval=1ba", "scheduler.t_warmup=0ba"]
LORA = "lora={r: 4, alpha: 8, target_modules: [Wqkv, experts]}"
RUNS = {
    "adamw": [],
    "lion": ["optimizer.name=decoupled_lionw", "optimizer.freeze=['*.blocks.0.*', 'lm_head.*']"],
    "sgd": ["optimizer.name=sgd"],
    "momentum": ["optimizer.name=sgd", "optimizer.momentum=0.9"],
    "lora": [LORA, "optimizer.freeze=['*.Wqkv.*']"],
    "file": ["fsdp_config.state_dict_type=full", "optimizer.name=decoupled_adamw", "optimizer.freeze=['*.wte.*']"],
    "ddp": ["fsdp_config=null", "optimizer.name=sgd"],
}
disk = namedtuple("disk", "total used free")


def train(path: str, names: list[str]) -> None:
    for name in names:
        with contextlib.redirect_stdout(io.StringIO()):
            fit(read_config(path, [*COMMON, f"run_name={name}", *RUNS[name]]))


def compare(folder: Path, names: list[str], world_size: int) -> None:
    path = write_toy_run(folder)
    run_ranks(train, world_size, path, names)
    for name in names:
        config = read_config(path, RUNS[name])
        (checkpoint,) = checkpoints(folder / name)
        files = [checkpoint] if checkpoint.is_file() else list(checkpoint.iterdir())
        sizes = {file.name: file.stat().st_size for file in files}
        assert checkpoint_bytes(config, world_size) == pytest.approx(sum(sizes.values()), rel=0.02, abs=2**15), name
        largest = file_bytes(config, world_size)
        assert largest < max(sizes.values()) < 1.1 * largest + 2**18, name


@pytest.mark.ranks
def test_predicted_sizes_match_real_checkpoints(tmp_path: Path) -> None:
    compare(tmp_path, ["adamw", "lora", "file"], 1)


@pytest.mark.proof
@pytest.mark.ranks
@pytest.mark.parametrize("world_size", [1, 2])
def test_predicted_sizes_match_for_every_optimizer_and_kind(tmp_path: Path, world_size: int) -> None:
    compare(tmp_path, list(RUNS), world_size)


def test_the_largest_file_is_divided_by_shards_only(tmp_path: Path) -> None:
    config = load(tmp_path, "optimizer.name=sgd", "model.vocab_size=1001")
    odd_rows = 2 * 4 * config.model.d_model  # one row each of the embedding and the head
    assert file_bytes(config, 2) == (file_bytes(config, 1) + odd_rows) / 2
    hybrid = "fsdp_config={sharding_strategy: HYBRID_SHARD, data_parallel_replicate_degree: 2}"
    replicated = load(tmp_path, "optimizer.name=sgd", "model.vocab_size=1001", hybrid)
    assert file_bytes(replicated, 4) == file_bytes(config, 2)
    whole = load(tmp_path, "optimizer.name=sgd", "model.vocab_size=1001", "fsdp_config.state_dict_type=full")
    assert file_bytes(whole, 2) == file_bytes(config, 1)


def with_space(monkeypatch: pytest.MonkeyPatch, free: int, total: int = 10**15) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk(total, total - free, free))


def write_checkpoint(folder: Path, n_bytes: int) -> None:
    (folder / "ep0-ba1").mkdir(parents=True)
    for name, size in {".metadata": 10, "__0_0.distcp": n_bytes - 10}.items():
        (folder / "ep0-ba1" / name).write_bytes(bytes(size))


@pytest.mark.parametrize(
    ("overrides", "n_saves", "kept"),
    [
        ([], None, "all are kept"),
        ([], 40, "all 40 are kept: at most {40} at a time"),
        (["save_num_checkpoints_to_keep=2"], None, "the newest 2 are kept: at most {3} at a time"),
        (["save_num_checkpoints_to_keep=1"], 40, "the newest is kept: at most {2} at a time"),
        (["save_num_checkpoints_to_keep=5"], 3, "the newest 5 are kept: at most {3} at a time"),
        (["save_num_checkpoints_to_keep=2", "save_keep_every=10"], None, "the newest 2 and one of every 10 are kept"),
        (
            ["save_num_checkpoints_to_keep=2", "save_keep_every=10"],
            45,
            "the newest 2 and one of every 10 are kept: at most {7} at a time",
        ),
    ],
)
def test_the_number_of_kept_checkpoints_is_described(
    tmp_path: Path, monkeypatch, overrides, n_saves, kept: str
) -> None:
    with_space(monkeypatch, 2**31)
    monkeypatch.setattr("train.checkpoint.saving.space.checkpoint_bytes", lambda config, ranks: 2**20)
    kept = re.sub(r"\{(\d+)\}", r"\1mb", kept)
    folder = tmp_path / "not" / "yet"
    line = describe_space(load(tmp_path, *overrides), folder, n_saves)
    assert line == f"checkpoints: 1mb each, {kept}, 2gb are free in {folder}"


def test_saves_are_counted_over_the_whole_run(tmp_path: Path) -> None:
    clock = Clock(tokens_per_batch=512, rows_per_batch=8, rows_per_epoch=80).until("25ba")
    counted = {text: count_saves(load(tmp_path, f"save_interval={text}"), clock) for text in ("1ep", "25ba", "0.2dur")}
    assert counted == {"1ep": 3, "25ba": 1, "0.2dur": 5}


def test_a_run_without_space_for_one_checkpoint_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    config = load(tmp_path)
    needed = checkpoint_bytes(config)
    with_space(monkeypatch, needed)
    check_space(config, tmp_path / "x", 1)
    with_space(monkeypatch, needed - 1)
    with pytest.raises(
        ConfigError, match=rf"{tmp_path / 'x'}, where .*\({needed - 1:,} bytes\).*\({needed:,} bytes\)"
    ) as caught:
        check_space(config, tmp_path / "x", 1)
    assert caught.value.key == "save_folder"
    assert capsys.readouterr().out == ""


def test_checkpoints_that_save_overwrite_deletes_count_as_free(tmp_path: Path, monkeypatch) -> None:
    write_checkpoint(tmp_path / "x", 100)
    with_space(monkeypatch, checkpoint_bytes(load(tmp_path)) - 100)
    check_space(load(tmp_path, "save_overwrite=true"), tmp_path / "x", 1)
    for kept in ("save_overwrite=false", "autoresume=true"):
        with pytest.raises(ConfigError, match="save_folder is"):
            check_space(load(tmp_path, "save_overwrite=true", f"save_folder={tmp_path}", kept), tmp_path / "x", 1)


def test_a_run_whose_checkpoints_will_not_fit_is_warned(tmp_path: Path, monkeypatch, capsys) -> None:
    config = load(tmp_path, "save_num_checkpoints_to_keep=2")
    needed = checkpoint_bytes(config)
    write_checkpoint(tmp_path / "x", needed)  # saved by an earlier start of this run
    with_space(monkeypatch, 2 * needed)
    check_space(config, tmp_path / "x", 10)
    with_space(monkeypatch, 2 * needed - 1)
    check_space(config, tmp_path / "x", 2)
    assert capsys.readouterr().out == ""
    check_space(config, tmp_path / "x", 10)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"warning: save_folder {tmp_path / 'x'} has room for ")
    assert "(the newest 2 are kept): free some space, or lower save_num_checkpoints_to_keep" in line


def test_a_file_system_that_does_not_report_free_space(tmp_path: Path, monkeypatch) -> None:
    with_space(monkeypatch, 0, total=0)
    check_space(load(tmp_path), tmp_path, 10)
    assert describe_space(load(tmp_path), tmp_path, None).endswith("all are kept")


def test_an_unreadable_folder_is_a_configuration_error(tmp_path: Path, monkeypatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    with pytest.raises(ConfigError, match=f"save_folder {tmp_path} cannot be read: Permission denied"):
        check_space(load(tmp_path), tmp_path, 1)


def test_a_file_size_limit_is_compared_with_the_largest_file_of_a_rank(tmp_path: Path, monkeypatch) -> None:
    config = load(tmp_path)
    limit = file_bytes(config, 2)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, resource.RLIM_INFINITY))
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_space(config, tmp_path, 1)
    with pytest.raises(ConfigError, match=rf"files larger than .*\({limit:,} bytes\): raise the limit \(`ulimit -f`"):
        check_space(config, tmp_path, 1, world_size=1)


def test_the_copies_of_a_node_equal_the_data_that_its_ranks_write(tmp_path: Path) -> None:
    def copies(world_size: int, *overrides: str) -> int:
        return snapshot_bytes(load(tmp_path, "optimizer.name=decoupled_lionw", *overrides), world_size, 8)

    whole = 2 * 4 * 131_596_523_520
    assert copies(64, "model.preset=132b") == pytest.approx(whole / 8, rel=0.01)
    hybrid = "fsdp_config={sharding_strategy: HYBRID_SHARD, data_parallel_replicate_degree: 16}"
    assert copies(64, "model.preset=132b", hybrid) == pytest.approx(whole, rel=0.01), "4 ranks have a replica"
    assert copies(8, "model.preset=132b", "fsdp_config={state_dict_type: full}") == whole, "rank 0 alone"
