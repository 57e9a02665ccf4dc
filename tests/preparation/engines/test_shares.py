"""Parts that several jobs prepare, and merging them."""

import json
from pathlib import Path

import pytest

from data.base.errors import ConfigError, DataError
from data.preparation.engines.choice import Engine, parse_share
from data.preparation.engines.run import run_share
from data.preparation.parts.part import PartError
from data.preparation.parts.plan import done, remove_unfinished
from data.preparation.prepare import prepare_into
from tests.helpers.mds_folders import open_folder
from tests.helpers.prepared import TOY, contents
from tests.helpers.toy_tokenizer import dataset_config, questions, write_jsonl

MERGE = Engine(merge_only=True)


@pytest.fixture
def config(tmp_path, small_pieces):
    write_jsonl(tmp_path / "train.jsonl", questions(300))
    return dataset_config(tmp_path, prepare_workers=1)


def write_share(folder: Path, config, index: int, count: int = 3) -> None:
    prepare_into(folder, config, TOY, engine=Engine(share=(index, count)))


def test_merged_parts_equal_a_local_preparation(tmp_path, config):
    for index in (2, 0, 1, 1):
        write_share(tmp_path / "parts", config, index)
    assert not (tmp_path / "parts" / "index.json").exists()
    merged = contents(prepare_into(tmp_path / "parts", config, TOY, engine=MERGE))
    assert merged == contents(prepare_into(tmp_path / "local", config, TOY))
    assert len([name for name in merged if name.endswith(".mds")]) > 3


@pytest.mark.parametrize("split", [None, "train"])
@pytest.mark.parametrize("remote", [False, True])
def test_a_folder_that_is_still_being_prepared_cannot_be_trained_on(tmp_path, config, split, remote):
    """The order of rows depends on the sizes of all shards."""
    folder = tmp_path / "out" / (split or "")
    write_share(folder, config, 0, 2)
    n_done = len(list((folder / "unfinished" / "parts").iterdir()))
    place = {"to": tmp_path / "copy"} if remote else {}
    with pytest.raises(ConfigError, match=rf"'{folder}' is not completely prepared \({n_done} of \d+ slices are done"):
        open_folder(str(tmp_path / "out"), split=split, **place)
    (folder / "unfinished" / "plan.json").write_text("{")
    with pytest.raises(ConfigError, match="number of finished slices is unknown"):
        open_folder(str(tmp_path / "out"), split=split, **place)
    if split is not None:
        with pytest.raises(ConfigError, match=r"the folder has no index\.json: set split to train"):
            open_folder(str(tmp_path / "out"), **place)


def test_a_local_preparation_uses_parts_that_exist(tmp_path, config):
    write_share(tmp_path / "out", config, 0, 2)
    part = tmp_path / "out" / "unfinished" / "parts" / "00000" / "part.json"
    before = part.stat().st_mtime_ns
    assert before
    expected = contents(prepare_into(tmp_path / "other", config, TOY))
    assert contents(prepare_into(tmp_path / "out", config, TOY)) == expected


def test_missing_parts_are_listed_and_nothing_is_lost(tmp_path, config):
    for index in (0, 2):
        write_share(tmp_path / "out", config, index)
    with pytest.raises(PartError, match=r"slices are not prepared \(numbers 1, 4\)"):
        prepare_into(tmp_path / "out", config, TOY, engine=MERGE)
    write_share(tmp_path / "out", config, 1)
    assert (prepare_into(tmp_path / "out", config, TOY, engine=MERGE) / "index.json").exists()


def test_merging_before_anything_is_prepared_is_refused(tmp_path, config):
    with pytest.raises(ConfigError, match=r"has no parts to merge: prepare all parts first \(--part 0/N"):
        prepare_into(tmp_path / "out", config, TOY, engine=MERGE)


@pytest.mark.parametrize("damage", ["text", "other slice", "shard", "documents"])
def test_a_damaged_part_is_named(tmp_path, config, damage):
    write_share(tmp_path / "out", config, 0, 1)
    place = tmp_path / "out" / "unfinished" / "parts" / "00001"
    file = {"shard": "shard.00001.00.mds", "documents": "documents.00001.bin"}.get(damage, "part.json")
    content = json.loads((place / "part.json").read_text())
    (place / file).write_text(json.dumps(content | {"slice": 2}) if damage == "other slice" else "{")
    with pytest.raises(PartError, match=rf"{place / file} .*delete the folder {place} and start again"):
        prepare_into(tmp_path / "out", config, TOY, engine=MERGE)
    assert (place.with_name("00000") / "part.json").exists()


def test_jobs_with_other_settings_cannot_write_into_one_folder(tmp_path, config):
    write_share(tmp_path / "out", config, 0)
    other = dataset_config(tmp_path, prepare_workers=1, max_seq_len=40)
    with pytest.raises(ConfigError, match=r"was prepared from other data or settings \(max_seq_len was 32, now 40\)"):
        write_share(tmp_path / "out", other, 1)


def test_a_share_reports_its_bad_rows(tmp_path, config):
    write_jsonl(tmp_path / "train.jsonl", [*questions(150), {"prompt": "p"}, *questions(150)])
    messages = []
    for index in range(3):
        try:
            write_share(tmp_path / "out", config, index)
        except DataError as error:
            messages.append(str(error))
    (message,) = messages
    assert "train.jsonl:151: response is missing" in message


@pytest.mark.parametrize("text", ["3/3", "1", "a/2", "-1/2", "1/0"])
def test_a_share_that_does_not_exist_is_refused(text):
    with pytest.raises(ConfigError, match=f"is {text!r}, but it must be I/N"):
        parse_share(text)


def test_merging_is_repeated_after_it_was_killed_while_it_removed_the_parts(tmp_path, config):
    write_share(tmp_path / "out", config, 0, 1)
    before = contents(prepare_into(tmp_path / "out", config, TOY, engine=MERGE))
    (tmp_path / "out" / "unfinished" / "parts" / "00000").mkdir(parents=True)
    assert contents(prepare_into(tmp_path / "out", config, TOY, engine=MERGE)) == before
    assert not (tmp_path / "out" / "unfinished").exists()


def during_a_share(monkeypatch, happens) -> None:
    """Call `happens(job)` after a share has read the plan."""

    def run(job, index, count):
        happens(job)
        run_share(job, index, count)

    monkeypatch.setattr("data.preparation.prepare.run_share", run)


def test_a_share_of_a_folder_that_is_merged_meanwhile_changes_nothing(tmp_path, config, monkeypatch):
    def merge(job):
        run_share(job, 0, 1)
        prepare_into(job.folder, config, TOY, engine=MERGE)

    during_a_share(monkeypatch, merge)
    write_share(tmp_path / "out", config, 1)
    assert contents(tmp_path / "out") == contents(prepare_into(tmp_path / "local", config, TOY))


def test_a_share_whose_folder_is_removed_meanwhile_is_one_error(tmp_path, config, monkeypatch):
    during_a_share(monkeypatch, lambda job: remove_unfinished(job.folder))
    with pytest.raises(DataError, match=r"out/unfinished was removed while this job prepared part 1/3"):
        write_share(tmp_path / "out", config, 1)


def test_a_removal_that_is_killed_leaves_no_parts(tmp_path, config, monkeypatch):
    write_share(tmp_path / "out", config, 0, 1)
    monkeypatch.setattr("data.preparation.parts.plan.shutil.rmtree", lambda *args, **kwargs: None)
    remove_unfinished(tmp_path / "out")
    monkeypatch.undo()
    assert not list(done(tmp_path / "out"))
    assert contents(prepare_into(tmp_path / "out", config, TOY)) == contents(prepare_into(tmp_path / "b", config, TOY))
