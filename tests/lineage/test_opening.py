"""Which run is opened, how many steps it has completed, and errors about its record and its rows."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data.base.errors import ConfigError, DataError
from data.lineage.references import parse_reference
from tests.helpers.stores import serve, shorten_waits
from tests.helpers.toy_run import write_toy_run
from tests.helpers.traced_runs import Traced, write_traced_run
from train.lineage.opening import open_run
from train.lineage.questions import trace


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    return write_traced_run(tmp_path_factory.mktemp("traced"), 3, {"a": 30, "b": 80, "c": 11}, 3)


def copied(traced: Traced, tmp_path: Path, change: Callable[[dict], None] = lambda line: None) -> Path:
    """A copy of the record with changed lines, without checkpoints."""
    folder = tmp_path / "copy"
    folder.mkdir()
    lines = [json.loads(line) for line in (traced.folder / "record.jsonl").read_text().splitlines()]
    for line in lines:
        change(line)
    (folder / "record.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_all_streams_without_lineage_are_reported(tmp_path: Path) -> None:
    traced = write_traced_run(tmp_path, 0, {"a": 6, "b": 6}, 1)
    for documented in traced.documented.values():
        manifest = json.loads((documented.folder / "manifest.json").read_text())
        del manifest["documents"]
        (documented.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"(?s)stream a .* has no lineage.*stream b .* has no lineage"):
        _ = open_run(str(traced.folder)).documents


def test_rows_that_have_changed_or_are_missing_are_an_error(traced: Traced, tmp_path: Path) -> None:
    def rename(line: dict) -> None:
        if line.get("event") == "start":
            line["data_plan"]["streams"][0]["fingerprint"] = "other"
            line["data"]["train_loader"]["b"]["folder"] = "/missing"
            del line["data"]["train_loader"]["c"]["folder"]

    with pytest.raises(ConfigError) as error:
        _ = open_run(str(copied(traced, tmp_path, rename))).folders
    assert "the rows of stream a in" in str(error.value)
    assert "the rows of stream b were in /missing, which does not exist" in str(error.value)
    assert "does not specify the folder that contains the rows of stream c" in str(error.value)


def test_a_folder_without_a_record_is_an_error(tmp_path: Path) -> None:
    for place, message in ((tmp_path, "has no record.jsonl"), (tmp_path / "x", "does not exist")):
        with pytest.raises(ConfigError, match=message):
            open_run(str(place))
    (tmp_path / "record.jsonl").write_text("")
    with pytest.raises(DataError, match="no line for the start"):
        open_run(str(tmp_path))
    (tmp_path / "ep0-ba10").mkdir()
    (tmp_path / "latest").symlink_to("ep0-ba10")
    for name in ("ep0-ba10", "latest"):
        with pytest.raises(ConfigError, match=rf"is a checkpoint: specify {tmp_path} .*--seen --until 10"):
            open_run(str(tmp_path / name))


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]


def begun(folder: Path) -> dict:
    """Remove all lines after the newest start. Return the start line."""
    lines = lines_of(folder)
    newest = max(n for n, line in enumerate(lines) if line.get("event") == "start")
    (folder / "record.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines[: newest + 1]))
    return lines[newest]


def test_completed_steps_of_a_running_run_are_read_from_its_metrics(traced: Traced, tmp_path: Path) -> None:
    folder = copied(traced, tmp_path)
    start = begun(folder)
    assert open_run(str(folder)).history.n_batches == start["batch"]
    earlier = {"batch": start["batch"] + 5, "time": start["time"] - 1, "tok": 1, "metrics": {}}
    (folder / "metrics.jsonl").write_text(f"{json.dumps(earlier)}\n")
    assert open_run(str(folder)).history.n_batches == start["batch"]
    later = {**earlier, "batch": start["batch"] + 2, "time": start["time"] + 1}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(f'{json.dumps(later)}\n{{"batch": 9')
    assert open_run(str(folder)).history.n_batches == start["batch"] + 2


def test_a_record_in_a_log_folder_refers_to_the_save_folder(traced: Traced, tmp_path: Path) -> None:
    def rename(line: dict) -> None:
        if line.get("event") == "saved":
            line["path"] = f"{traced.folder}/{line['path']}"

    found = open_run(str(copied(traced, tmp_path, rename)))
    assert found.saved == open_run(str(traced.folder)).saved
    assert found.saved


def test_a_run_is_found_from_its_config(traced: Traced, tmp_path: Path) -> None:
    path = Path(write_toy_run(tmp_path))
    with pytest.raises(ConfigError, match=rf"toy does not exist.*: {path} refers to this folder"):
        open_run(str(path))
    copied(traced, tmp_path).rename(tmp_path / "toy")
    assert open_run(str(path)).place == f"{tmp_path}/toy"


def test_a_run_in_an_object_store(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_waits(monkeypatch)
    with serve("gs") as server:
        for path in [traced.folder / "record.jsonl", *traced.folder.glob("*/manifest.json")]:
            server.put(f"run/{path.relative_to(traced.folder)}", path.read_bytes())
        run = open_run(f"{server.url}/run/")
        reference = parse_reference(traced.documents("a", 3)[0])
        there, here = (trace(each, [reference]) for each in (run, open_run(str(traced.folder))))
        assert there.found == here.found
        assert [each.references for each in there.checkpoints] == [each.references for each in here.checkpoints]
        assert there.checkpoints[0].checkpoint == "gs://bucket/run/ep0-ba3"
        with pytest.raises(ConfigError, match=r"gs://bucket/other has no record.jsonl"):
            open_run(f"{server.url}/other")
