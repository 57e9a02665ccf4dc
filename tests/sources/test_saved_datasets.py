"""Folders of the `datasets` library's save_to_disk."""

import json

import datasets
import pyarrow as pa
import pytest

from data.base.errors import ConfigError, DataError
from data.config.dataset import DatasetConfig
from data.config.source import HFKwargs
from data.sources.source import open_source
from tests.helpers.read_source import chunks_of, of_folder, read, values

ROWS = [{"prompt": f"{i}?", "turns": [{"n": i}], "none": None} for i in range(25)]


@pytest.fixture(autouse=True)
def no_bars():
    datasets.disable_progress_bars()


def save(folder, rows=ROWS, **options):
    datasets.Dataset.from_list(rows, split=options.pop("split", None)).save_to_disk(str(folder), **options)
    return folder


def test_a_saved_dataset_is_read_row_by_row(tmp_path, monkeypatch):
    monkeypatch.setattr("data.sources.formats.content.CHUNK_ROWS", 4)
    folder = save(tmp_path / "saved", num_shards=2)
    source = open_source(of_folder(folder))
    assert len(list(chunks_of(source))) == 4 + 3
    pairs = read(source)
    assert values(pairs) == ROWS
    assert pairs[13][0] == f"{folder}/data-00001-of-00002.arrow row 1"
    assert values(read(open_source(of_folder(folder, "train[12:14]")))) == ROWS[12:14]


def test_files_are_those_of_the_state_in_its_order(tmp_path):
    folder = save(tmp_path / "saved", num_shards=2)
    (folder / "cache-123.arrow").write_bytes(b"left over from map()")
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"].reverse()
    (folder / "state.json").write_text(json.dumps(state))
    assert values(read(open_source(of_folder(folder)))) == ROWS[13:] + ROWS[:13]


def test_a_saved_dict_has_splits(tmp_path):
    splits = {"train": ROWS[:20], "dev": ROWS[20:]}
    tables = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    datasets.DatasetDict(tables).save_to_disk(str(tmp_path / "saved"))
    for split, rows in {None: ROWS[:20], "dev": ROWS[20:], "dev+train[:1]": ROWS[20:] + ROWS[:1]}.items():
        assert values(read(open_source(of_folder(tmp_path / "saved", split)))) == rows
    with pytest.raises(ConfigError, match=r"split is 'test', but the splits saved in '.*' are train, dev"):
        open_source(of_folder(tmp_path / "saved", "test"))


def test_a_single_dataset_is_train_or_what_it_was(tmp_path):
    folder = save(tmp_path / "saved", split="validation")
    for split in (None, "train", "validation"):
        assert values(read(open_source(of_folder(folder, split)))) == ROWS
    with pytest.raises(
        ConfigError, match=r"split is 'test', but .* save_to_disk wrote only the split validation: remove"
    ):
        open_source(of_folder(folder, "test"))


def test_a_saved_folder_must_be_named_itself(tmp_path):
    folder = save(tmp_path / "all" / "saved")
    by_kwargs = DatasetConfig(hf_name="json", hf_kwargs=HFKwargs(data_dir=str(folder)), max_seq_len=8)
    for config in (of_folder(tmp_path / "all"), by_kwargs):
        with pytest.raises(
            ConfigError, match=rf"written by save_to_disk .*: specify that folder instead \(hf_name: {folder}"
        ):
            open_source(config)
    with pytest.raises(ConfigError, match=r"hf_name is a folder written by save_to_disk, which lists its own files"):
        open_source(of_folder(folder, data_files="data-*.arrow"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, "rows are selected by an index file"),
        ({"_data_files": [{"filename": "../other.arrow"}]}, "does not list its data files in `_data_files`"),
        ({"_data_files": []}, "does not list its data files in `_data_files`"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, r"files listed in state.json are missing \(gone.arrow\)"),
    ],
)
def test_an_unusable_state_file_is_refused(tmp_path, change, text):
    folder = save(tmp_path / "saved")
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | change))
    with pytest.raises(DataError, match=text):
        open_source(of_folder(folder))


def test_a_stream_truncated_between_batches_is_refused(tmp_path):
    folder = save(tmp_path / "saved")
    (path,) = folder.glob("data-*.arrow")
    with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
        table = stream.read_all()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=5)
    content = sink.getvalue().to_pybytes()
    for end in (content[:-8], content[:-100]):
        path.write_bytes(end)
        with pytest.raises(
            DataError, match=r"\.arrow is not a complete Arrow stream \(.+\): copy or save the dataset again"
        ):
            open_source(of_folder(folder))
