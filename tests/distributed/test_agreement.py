"""Ranks that run different things are detected before the process group exists, and every rank names the
differences."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch.distributed import HashStore

from data.base.errors import ConfigError
from tests.helpers.ranks import ends_of_ranks
from tests.helpers.toy_run import write_toy_run
from train.config.load import read_config
from train.distributed import agreement
from train.distributed.agreement import announce, check_agreement, facts_of_start


def errors_of(facts: Sequence[Mapping[str, str]], nodes: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The error of each rank, in order; empty if the ranks agree."""
    store = HashStore()
    for rank, (each, node) in enumerate(zip(facts, nodes, strict=True)):
        monkeypatch.setattr(agreement.platform, "node", lambda node=node: node)
        announce(store, each, rank)

    def check(rank: int) -> str:
        try:
            check_agreement(store, facts[rank], rank, len(facts))
        except ConfigError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(facts)) as ranks:
        return list(ranks.map(check, range(len(facts))))


def test_ranks_with_the_same_run_exchange_only_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement.json, "loads", lambda text: pytest.fail("facts were exchanged"))
    assert errors_of([{"seed": "1"}] * 3, ["a", "a", "b"], monkeypatch) == ["", "", ""]


def test_every_rank_names_what_differs_and_where(monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"optimizer.lr": "0.1", "seed": "1", "version of torch": "2.15.0"}
    other = {"optimizer.lr": "0.2", "seed": "1"}
    errors = errors_of([same, other, same, same, other], ["gpu0", "gpu0", "gpu1", "gpu1", "gpu2"], monkeypatch)
    assert len(set(errors)) == 1
    ours, theirs = "ranks 0, 2-3 (gpu0 and 1 other nodes)", "ranks 1, 4 (gpu0 and 1 other nodes)"
    assert errors[0].splitlines()[1:] == [
        f"  optimizer.lr is 0.1 on {ours}, but 0.2 on {theirs}",
        f"  version of torch is 2.15.0 on {ours}, but absent on {theirs}",
    ]


def test_a_long_list_of_differences_is_truncated(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = [{f"key{n}": f"{rank}" * 100 for n in range(30)} for rank in range(6)]
    error = errors_of(facts, ["a"] * 6, monkeypatch)[5]
    assert error.count("\n") == 21
    assert error.endswith("\n  and 10 more")
    assert f"{'0' * 80}... on rank 0 (a), but {'1' * 80}... on rank 1 (a)" in error


def facts_with(path: str, *overrides: str) -> dict[str, str]:
    return facts_of_start(read_config(path, overrides), "cpu", {"train_loader": "f1"})


def test_nodes_may_differ_only_in_folders_and_processors(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path, 4)
    dataset = "train_loader.dataset"
    same = [
        f"{dataset}.cache_dir=/local/cache",
        f"{dataset}.prepare_workers=3",
        f"{dataset}.hf_kwargs.data_files=/local/train.jsonl",
        "eval_loader.num_workers=2",
        "tokenizer.kwargs.vocab_file=/local/vocab",
    ]
    assert facts_with(path, *same) == facts_with(path)
    others = {
        "optimizer.lr": "0.1",
        "save_folder": "/local/runs",
        f"{dataset}.split": "train[:9]",
        f"{dataset}.preprocessing_fn": "{text: local}",
    }
    for key, value in others.items():
        changed = facts_with(path, f"{key}={value}").items() ^ facts_with(path).items()
        assert {name for name, _ in changed} == {key} or key.endswith("preprocessing_fn"), changed
        assert changed


def test_rows_device_packages_and_source_are_compared_and_secrets_are_not_shown(tmp_path: Path) -> None:
    config = read_config(write_toy_run(tmp_path, 4), ["loggers.wandb={project: https://me:secret-word@host}"])
    facts = facts_of_start(config, "gpu", {"train_loader.web": "f2"})
    assert (facts["rows of train_loader.web"], facts["kind of device"]) == ("f2", "gpu")
    assert {"version of torch", "version of mosaicml", "train/distributed/agreement.py"} <= facts.keys()
    assert "secret-word" not in str(facts)
    (tmp_path / "train").mkdir()
    (tmp_path / "train/x.py").write_text("a = 1\n")
    before = agreement._source_files(tmp_path)
    (tmp_path / "train/x.py").write_text("a = 2\n")
    assert before.keys() == {"train/x.py"}
    assert agreement._source_files(tmp_path) != before


def _start_with_own_rate(config: str) -> int:
    from train.main import main

    rank = os.environ["RANK"]
    os.environ["LOCAL_RANK"] = "0"  # each rank on its own node
    return main([config, "max_duration=2ba", f"optimizer.lr={['0.001', '0.002'][int(rank)]}"])


@pytest.mark.ranks
def test_a_run_whose_ranks_differ_ends_before_its_model_is_built(tmp_path: Path) -> None:
    ends = ends_of_ranks(_start_with_own_rate, 2, write_toy_run(tmp_path, 40))
    assert [end.code for end in ends] == [2, 2]
    assert "error: the ranks differ: start every node with the same command" in ends[0].output
    assert "\n  optimizer.lr is 0.001 on rank 0 (" in ends[0].output
    assert "), but 0.002 on rank 1 (" in ends[0].output
    assert "error" not in ends[1].output
    assert not any("Traceback" in end.output for end in ends)
    assert not (tmp_path / "toy").exists()


def _start_in_own_folder(config: str, folders: list[str]) -> int:
    from train.main import main

    os.environ["LOCAL_RANK"] = "0"
    os.chdir(folders[int(os.environ["RANK"])])  # like the disks of two nodes, with different files at the same path
    return main([config, "max_duration=2ba", "save_folder=runs"])


@pytest.mark.ranks
def test_a_save_folder_that_nodes_do_not_share_is_refused_before_training(tmp_path: Path) -> None:
    folders = [tmp_path / "node0", tmp_path / "node1"]
    for folder in folders:
        folder.mkdir()
    ends = ends_of_ranks(_start_in_own_folder, 2, write_toy_run(tmp_path, 40), [str(folder) for folder in folders])
    assert [end.code for end in ends] == [2, 2]
    assert "save_folder is runs, but the files of rank 0 are not visible on ranks 1: specify a folder" in ends[0].output
    assert not any("Traceback" in end.output for end in ends)
    assert not any(path for folder in folders for path in folder.rglob("*") if path.is_file())
