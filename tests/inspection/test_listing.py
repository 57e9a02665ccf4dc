"""`checkpoint.py ls`, and the messages of all commands for a path without checkpoints."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from data.base.errors import ConfigError
from tests.helpers.saved_checkpoints import flip, write_save_folder
from train.checkpoint.owner import own
from train.checkpoint.places import resolve_save_folder
from train.checkpoint.storage.manifest import read_manifest, write_manifest
from train.export.export import find_checkpoint as find_newest
from train.inspection.found import find_checkpoint, find_checkpoints, find_save_folder
from train.inspection.listing import as_json, entries, notes, table

GOLDEN = Path(__file__).parents[1] / "golden" / "run"


def shown(folder: Path) -> str:
    found = find_checkpoints(folder)
    listed = entries(found)
    console = Console(file=io.StringIO(), width=160, highlight=False)
    console.print(table(listed))
    console.print("\n".join(notes(found, listed)), markup=False)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def refused(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        find_checkpoints(path)
    return str(caught.value).replace(str(path), "PATH")


def test_checkpoints_are_listed_from_their_manifests(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10, 1000)
    (folder / "latest").symlink_to("ep0-ba1000")
    text = shown(folder)
    assert "ep0-ba1000 (latest) │ 1,000 │ 2026-01-01 00:00:00 │" in text
    assert "run (a-run) │ manifest 1" in text
    assert "owner: none" in text
    assert "versions" not in text


def test_versions_are_listed_where_they_differ(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10, 20)
    manifest = read_manifest(folder / "ep0-ba20")
    assert manifest is not None
    write_manifest(folder / "ep0-ba20", replace(manifest, versions={"torch": "2.0"}))
    assert [line.split("│")[-2].strip() for line in shown(folder).splitlines() if "ep0" in line] == ["", "torch 2.0"]


def test_a_defect_of_a_checkpoint_is_in_its_row(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10, 20, 30)
    flip(folder / "ep0-ba10" / "manifest.json", 200)
    (folder / "ep0-ba20" / "__0_0.distcp").write_bytes(b"short")
    (folder / "ep0-ba30" / "manifest.json").unlink()
    damaged, short, missing = entries(find_checkpoints(folder))
    assert "manifest.json is damaged" in str(damaged.error)
    assert "has 5 bytes, but 4,000 were written" in str(short.error)
    assert "manifest.json is missing" in str(missing.error)
    assert [damaged.format, short.format, missing.format] == ["damaged", "manifest 1", "damaged"]


def test_a_checkpoint_of_an_earlier_version_is_listed_with_its_batch() -> None:
    (entry,) = entries(find_checkpoints(GOLDEN))
    assert (entry.format, entry.batch, entry.error) == ("earlier version", 4, None)


def test_leftovers_and_an_owner_are_named(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10)
    (folder / ".part-ep0-ba20").mkdir()
    assert ".part-ep0-ba20 was not committed: the next run or prune deletes it" in shown(folder)
    with own(folder, "mine [bold]"):
        text = shown(folder)
    assert "owner: run 'mine [bold]' (host" in text
    assert "which is alive" in text
    assert ".part-ep0-ba20 is not committed yet: the run may still be writing it" in text


def test_json_has_the_same_values(tmp_path: Path) -> None:
    found = find_checkpoints(write_save_folder(tmp_path, 10))
    (checkpoint,) = json.loads(json.dumps(as_json(found, entries(found))))["checkpoints"]
    assert (checkpoint["name"], checkpoint["batch"], checkpoint["run_id"]) == ("ep0-ba10", 10, "a-run")
    assert checkpoint["size"] > 4000


def test_a_link_and_a_save_folder_name_a_checkpoint(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10, 20)
    (folder / "latest").symlink_to("ep0-ba10")
    assert find_checkpoint(folder / "latest") == (folder / "ep0-ba10").resolve()
    assert find_checkpoint(folder) == folder / "ep0-ba20"
    with pytest.raises(ConfigError, match="a checkpoint: specify the folder"):
        find_save_folder(folder / "ep0-ba10")


def test_a_folder_of_a_run_names_its_save_folder(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path / "run" / "checkpoints", 10, 20)
    (tmp_path / "run" / "logs").mkdir()
    assert find_checkpoint(tmp_path / "run") == find_newest(tmp_path / "run") == folder / "ep0-ba20"
    assert find_save_folder(tmp_path / "run").folder == folder
    for name in ("metrics.jsonl", "record.jsonl"):  # its log_folder is the folder above
        (tmp_path / "run" / name).touch()
    assert find_save_folder(tmp_path / "run").folder == folder
    assert resolve_save_folder(folder / "ep0-ba10") == folder / "ep0-ba10"
    write_save_folder(tmp_path / "run" / "other", 5)
    assert refused(tmp_path / "run") == "PATH contains PATH/checkpoints and PATH/other: specify one of them"


def test_a_path_without_checkpoints_is_refused(tmp_path: Path) -> None:
    write_save_folder(tmp_path / "run" / "checkpoints", 10)
    (tmp_path / "left" / ".part-ep0-ba20").mkdir(parents=True)
    (tmp_path / "link").symlink_to("gone")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    (tmp_path / "none").mkdir()
    assert refused(tmp_path / "no") == "PATH does not exist"
    assert refused(tmp_path / "link") == "PATH is a link to gone, which does not exist"
    assert refused(tmp_path / "run" / "checkpoints" / "config.yaml").endswith("but a file")
    assert refused(tmp_path / "none").endswith("but an empty folder")
    assert "an exported folder (it contains config.json)" in refused(tmp_path / "hf")
    assert refused(tmp_path / "left") == "PATH contains no committed checkpoint, only .part-ep0-ba20"


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", denied)
    assert refused(tmp_path) == "PATH cannot be read: Permission denied"
