"""All loggers log the names of docs/metrics.md under the same steps, and continue one run after a resume."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.internal.datastore import DataStore

from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from train.config.load import read_config
from train.run.fit import fit

Steps = dict[str, list[int]]
"""Return the steps under which each metric was logged."""


ROW = re.compile(r"^\| `([^`]+)` \|.*\|([^|]*)\|$", re.MULTILINE)
"""Return the name and the enabling key of each metric in the table."""
PLACEHOLDER = re.compile(r"STREAM|KIND|OPTIMIZER|GROUP|STATISTIC|(?<=_)[LE]\b")


def logged(path: str, folder: str) -> None:
    os.environ |= {"WANDB_MODE": "offline", "WANDB_DIR": folder, "WANDB_SILENT": "true"}
    board, runs = {"log_dir": f"{folder}/{{run_name}}"}, {"tracking_uri": f"{folder}/ml"}
    loggers = {"tensorboard": board, "wandb": {}, "mlflow": runs}
    files = {"hf_name": "json", "hf_kwargs": {"data_files": str(Path(path).with_name("train.jsonl"))}}
    streams = {name: {**files, "max_repeats": 2} for name in ("a", "b")}
    stages = [{"name": name, "proportions": {"a": 0.5, "b": 0.5}} for name in ("first", "second")]
    stages[0]["duration"] = "2ba"
    generate = {"prompts": ["ab"], "interval": "5ba", "max_new_tokens": 2}
    callbacks = {"generate": generate, "lr_monitor": {}, "speed_monitor": {"window_size": 2}, "runtime_estimator": {}}
    overrides = [
        *["save_interval=2ba", "eval_interval=2ba", "run_name=toy", "model.ffn_config.moe_zloss_weight=0.01"],
        *[f"loggers={json.dumps(loggers)}", f"callbacks={json.dumps(callbacks)}"],
        *["train_loader.dataset.hf_name=null", "train_loader.dataset.hf_kwargs={}"],
        *[f"train_loader.dataset.streams={json.dumps(streams)}", f"train_loader.stages={json.dumps(stages)}"],
    ]
    fit(read_config(path, [*overrides, "max_duration=3ba"]))
    fit(read_config(path, [*overrides, "max_duration=5ba", "autoresume=true", "optimizer.lr=1e-4"]))


@pytest.mark.ranks
@pytest.mark.timeout(200)
def test_all_loggers_agree_and_continue_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_ranks(logged, 1, write_toy_run(tmp_path), str(tmp_path / "logs"))
    expected = of_json_lines(tmp_path / "toy" / "metrics.jsonl")
    assert expected["loss/train/total"] == [1, 2, 3, 4, 5]
    assert expected["metrics/eval/LanguageCrossEntropy"] == [2, 3, 4, 5]

    boards = [EventAccumulator(str(file)).Reload() for file in sorted((tmp_path / "logs" / "toy").iterdir())]
    assert len(boards) == 2
    assert merged(of_board(board) for board in boards) == expected
    assert b"lr: 0.0001" in boards[1].Tensors("config/text_summary")[0].tensor_proto.string_val[0]

    records = [list(wandb_records(file)) for file in sorted(tmp_path.glob("logs/wandb/offline-*/*.wandb"))]
    assert merged(of_wandb(process) for process in records) == expected
    assert len({record.run.run_id for process in records for record in process if record.HasField("run")}) == 1
    assert [wandb_config(process)["optimizer"]["lr"] for process in records] == [3e-3, 1e-4]

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # for reading the folder; a run sets it itself
    client = MlflowClient(str(tmp_path / "logs" / "ml"))
    (run,) = client.search_runs(["0"])
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    assert {name: sorted(metric.step for metric in metrics) for name, metrics in history.items()} == expected
    assert (run.info.status, run.data.params["optimizer.lr"]) == ("FINISHED", "0.003")
    (artifact,) = tmp_path.glob("logs/ml/0/*/artifacts/config.yaml")
    assert "lr: 0.0001" in artifact.read_text()
    check_the_table(set(expected))
    check_the_record(tmp_path / "toy")


def check_the_table(names: set[str]) -> None:
    """Check that each name is in the table, and that metrics without a key were logged."""
    rows = dict(ROW.findall((Path(__file__).parents[2] / "docs" / "metrics.md").read_text()))
    rows = {name: key.strip() for name, key in rows.items()}
    patterns = {name: re.compile(PLACEHOLDER.sub(r"[^/]+", name)) for name in rows}
    assert [name for name in sorted(names) if not any(each.fullmatch(name) for each in patterns.values())] == []
    wanted = [name for name, key in rows.items() if not key or key == "named streams" or key.startswith("experts.")]
    missing = [name for name in wanted if not any(map(patterns[name].fullmatch, names))]
    assert missing == ["events/KIND"]


def check_the_record(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    assert [line["time"] for line in lines] == sorted(line["time"] for line in lines)
    events = [(line["event"], line["batch"]) for line in lines if "event" in line]
    assert [event for event in events if event[0] != "saved"] == [
        *[("start", 0), ("stage", 0), ("stage", 2), ("end", 3), ("start", 3), ("end", 5)],
    ]
    saved = [line for line in lines if line.get("event") == "saved"]
    assert [(line["batch"], Path(line["path"]).name) for line in saved] == [
        (batch, f"ep0-ba{batch}") for batch in (2, 3, 4, 5)
    ]
    assert all(line["bytes"] > 0 and line["seconds"] > 0 for line in saved)
    samples = [(line["batch"], line["samples"][0]["prompt"]) for line in lines if "samples" in line]
    assert samples == [(3, "ab"), (5, "ab")]
    first, second = [line for line in lines if line.get("event") == "start"]
    assert first["run_id"] == second["run_id"] == json.loads((folder / "run.json").read_text())["run"]["run_id"]
    assert [line["resumed_from"] for line in (first, second)] == [None, str(folder / "ep0-ba3")]
    assert first["data"]["train_loader"]["a"]["rows"] > 0
    assert first["data"]["train_loader"]["a"]["packing"] == "best_fit"
    assert first["data"]["eval_loader"][""]["documents"] == 21
    assert first["stages"][1] == {"name": "second", "first": 2, "end": None}
    assert (second["config"]["optimizer"]["lr"], second["defaults_differ"]["optimizer.lr"]) == (1e-4, 1e-4)
    assert "optimizer.eps" not in second["defaults_differ"]
    assert [line["outcome"] for line in lines if line.get("event") == "end"] == ["finished"] * 2


def merged(several: Iterator[Steps]) -> Steps:
    steps: Steps = {}
    for each in several:
        for name, found in each.items():
            steps[name] = steps.get(name, []) + found
    return steps


def of_json_lines(file: Path) -> Steps:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return merged({name: [line["batch"]] for name in line["metrics"]} for line in lines)


def of_board(board: EventAccumulator) -> Steps:
    return {name: [event.step for event in board.Scalars(name)] for name in board.Tags()["scalars"]}


def wandb_records(file: Path) -> Iterator[Record]:
    store = DataStore()
    store.open_for_scan(str(file))
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        yield record


def of_wandb(records: list[Record]) -> Steps:
    def steps() -> Iterator[Steps]:
        for record in records:
            line = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            yield {name: [line["batch"]] for name in line if not name.startswith(("_", "batch", "generate/"))}

    return merged(steps())


def wandb_config(records: list[Record]) -> dict[str, Any]:
    return {
        item.key or item.nested_key[0]: json.loads(item.value_json)
        for record in records
        for item in (*record.run.config.update, *record.config.update)
    }
