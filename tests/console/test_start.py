"""The summary before a run reads data."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.small_config import load
from train.console.data_summary import lineage_lines, output_lines
from train.console.facts import WIDTH
from train.console.start import config_lines, machine_lines, model_lines
from train.planning.machine import RankMemory

MEMORY = RankMemory(at_least=1 << 30, predicted=3 << 29, available=8 << 30)


def test_only_what_differs_from_the_defaults_is_listed(tmp_path: Path) -> None:
    text = "\n".join(config_lines(load(tmp_path, "seed=17", "optimizer.weight_decay=0.1", "callbacks.lr_monitor={}")))
    assert "weight_decay=0.1" in text
    assert "lr_monitor={}" in text
    assert "seed" not in text  # set to its default
    assert "d_model" not in text  # set by the preset
    assert "max_duration" not in text  # shown by another line


def test_event_files_are_in_the_folder_of_the_run(tmp_path: Path) -> None:
    config = load(tmp_path, "loggers={tensorboard: {log_dir: 'boards/{run_name}'}}")
    text = "\n".join(output_lines(config, "mine", None, None))
    assert "TensorBoard in boards/mine" in text


def test_streams_without_documents_are_listed() -> None:
    streams: dict[str, Any] = {
        name: SimpleNamespace(mds=SimpleNamespace(manifest=manifest))
        for name, manifest in {"a": {"documents": []}, "b": {}, "c": None}.items()
    }
    (line,) = lineage_lines(streams)
    assert line.startswith("lineage        the rows of b, c do not list their documents")
    assert not [*lineage_lines({"a": streams["a"]})]


def test_a_key_that_overrides_a_preset_is_listed(tmp_path: Path) -> None:
    text = "\n".join(config_lines(load(tmp_path, "model={preset: tiny, d_model: 128}")))
    assert "  model        d_model=128" in text


def test_secrets_are_hidden_and_the_list_is_short(tmp_path: Path) -> None:
    streams = ", ".join(f"{name}: {{hf_name: json}}" for name in "abcdefgh")
    tokens = f"train_loader.dataset={{streams: {{{streams}}}, max_seq_len: 64}}"
    lines = list(config_lines(load(tmp_path, tokens, f"loggers.wandb.project=hf_{'Ab12' * 8}")))
    assert "Ab12" not in "\n".join(lines)
    assert len(lines) < 20
    assert all(len(line) <= WIDTH for line in lines)


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("fsdp_config=null", "DDP: every rank has the whole model"),
        ("fsdp_config={expert_parallel_degree: 2}", "FSDP: sharded over 4 ranks, experts sharded over 2 ranks"),
        (
            "fsdp_config={sharding_strategy: HYBRID_SHARD, data_parallel_replicate_degree: 2}",
            "HSDP: 2 replicas, each sharded over 2 ranks",
        ),
    ],
)
def test_the_ranks_and_their_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, shown: str) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    lines = list(machine_lines(load(tmp_path, override), 4, "cpu", MEMORY))
    assert lines[0] == f"ranks          4 on 2 nodes, CPU; {shown}"
    assert lines[1] == "precision      fp32 (amp_bf16 becomes fp32 on CPU)"
    assert lines[3] == "memory         1.5gb predicted per rank (at least 1gb), 8gb available"


@pytest.mark.parametrize(
    ("log_dir", "folder"), [("null", "tensorboard_logs/mine"), ("'runs/{run_name}/board'", "runs/mine/board")]
)
def test_the_folder_of_event_files_is_shown(tmp_path: Path, log_dir: str, folder: str) -> None:
    lines = output_lines(load(tmp_path, f"loggers.tensorboard.log_dir={log_dir}"), "mine", None, None)
    assert f"logs           TensorBoard in {folder}" in lines


def test_the_model(tmp_path: Path) -> None:
    first, second = model_lines(load(tmp_path))
    assert first == "model          DBRX tiny: 2 layers of width 64, 16 experts, 4 active per token"
    assert second.startswith("parameters     ")
