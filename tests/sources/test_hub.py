import functools
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.base.errors import ConfigError, DataError
from data.config.dataset import DatasetConfig
from data.config.source import HFKwargs
from data.hub import reach
from data.sources.source import open_source
from tests.helpers.hub_server import Hub, Repository, serve, use_hub
from tests.helpers.read_source import read

ROOT = Path(__file__).parents[2]
ROWS = [{"prompt": f"{i}?", "response": "12"} for i in range(5)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b"prompt,response\n" + b"".join(f"{i}?,12\n".encode() for i in range(5))
CARD = b"""---
configs:
- config_name: easy
  data_files:
  - split: train
    path: easy/*.jsonl
  - split: holdout
    path: easy/later/*.jsonl
- config_name: hard
  data_files: hard/*.csv
---
"""
SEMICOLONS = b"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: a*.csv
  - split: test
    path: b*.csv
  sep: ";"
---
"""


def parquet(rows: list) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


REPOSITORIES = {
    "acme/tiny": Repository({"README.md": b"# Tiny", "train.jsonl": JSONL, "test.jsonl": JSONL, "tool.py": b"1/0"}),
    "acme/shards": Repository(
        {f"data/train-0000{i}-of-00002.parquet": parquet(ROWS[i:]) for i in range(2)}, revisions=("main", "v1.0")
    ),
    "acme/subsets": Repository(
        {
            "README.md": CARD,
            "easy/a.jsonl": JSONL,
            "easy/b.jsonl": JSONL,
            "easy/later/c.jsonl": JSONL,
            "hard/a.csv": CSV,
        }
    ),
    "acme/cells": Repository({"data.csv": CSV, "old/data.csv": b""}),
    "acme/semicolons": Repository({"README.md": SEMICOLONS, "a[1].csv": CSV.replace(b",", b";"), "b.csv": b""}),
    "acme/mixed": Repository({"train.jsonl": JSONL, "test.csv": CSV}),
    "acme/lines": Repository({"train.txt": b"one\ntwo\n", "model.bin": b"\0" * 9}),
    "acme/code": Repository({"code.py": b"raise SystemExit", "a.bin": b"1"}),
    "acme/closed": Repository({"train.jsonl": JSONL}, gated=True),
    "acme/none": Repository({"README.md": b"# None", "weights.bin": b"1"}),
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serve(dict(REPOSITORIES)) as hub:
        use_hub(monkeypatch, hub.endpoint, tmp_path)
        yield hub


def config(tmp_path, dataset="acme/tiny", split=None, safe_load=True, **kwargs) -> DatasetConfig:
    return DatasetConfig(
        hf_name=dataset,
        split=split,
        safe_load=safe_load,
        hf_kwargs=HFKwargs(**kwargs),
        max_seq_len=8,
        cache_dir=str(tmp_path / "cache"),
    )


def refusal(config) -> str:
    with pytest.raises(ConfigError) as error:
        open_source(config)
    return str(error.value)


def test_a_split_is_downloaded_and_no_more(hub: Hub, tmp_path):
    source = open_source(config(tmp_path))
    assert hub.downloaded() == ["README.md"]
    assert source.total == len(JSONL)
    assert read(source) == [(f"acme/tiny/train.jsonl:{i}", row) for i, row in enumerate(ROWS, start=1)]
    assert hub.downloaded() == ["README.md", "train.jsonl"]
    commit = REPOSITORIES["acme/tiny"].commit
    assert source.inputs == [{"dataset": "acme/tiny", "revision": commit, "path": "train.jsonl", "bytes": len(JSONL)}]


@pytest.mark.parametrize("dataset", ["acme/tiny", "acme/shards", "acme/zipped"])
def test_streaming_reads_the_same_rows_without_the_cache(hub: Hub, tmp_path, dataset):
    hub.repositories["acme/zipped"] = Repository({"train-1.jsonl.gz": gzip.compress(JSONL * 100), "train-0.jsonl": b""})
    streamed = open_source(config(tmp_path, dataset, streaming=True))
    rows = read(streamed)
    assert len(rows) in (5, 9, 500)
    assert {path.name for path in (tmp_path / "hub").rglob("snapshots/*/*")} <= {"README.md"}
    downloaded = open_source(config(tmp_path, dataset))
    assert (rows, streamed.fingerprint) == (read(downloaded), downloaded.fingerprint)
    assert (streamed.inputs, streamed.total) == (downloaded.inputs, downloaded.total)


def test_files_that_cannot_be_streamed_are_reported(hub: Hub, tmp_path):
    hub.withheld.add("train.jsonl")
    with pytest.raises(DataError, match=r"acme/tiny/train.jsonl cannot be read: permission denied: start again"):
        read(open_source(config(tmp_path, streaming=True)))
    text = refusal(config(tmp_path, "acme/lines", safe_load=False, streaming=True))
    assert text.startswith("hf_kwargs.streaming is true, but only the `datasets` library can read the files of")


def test_csv_of_the_hub_is_read_as_text(hub: Hub, tmp_path):
    pairs = read(open_source(config(tmp_path, "acme/cells", data_files="data.csv")))
    assert pairs[0] == ("acme/cells/data.csv row 1 (line 2)", ROWS[0])


def test_file_names_that_point_outside_the_dataset_are_ignored(hub: Hub, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "here"))
    outside = {"train.jsonl": JSONL, "../../train-1.jsonl": JSONL, f"{tmp_path}/train-2.jsonl": JSONL}
    hub.repositories["acme/evil"] = Repository(outside)
    assert len(read(open_source(config(tmp_path, "acme/evil")))) == 5
    assert not list(tmp_path.rglob("train-*"))


def test_shards_come_in_order(hub: Hub, tmp_path):
    pairs = read(open_source(config(tmp_path, "acme/shards")))
    assert [row for _, row in pairs] == ROWS + ROWS[1:]
    assert pairs[5][0] == "acme/shards/data/train-00001-of-00002.parquet row 1"


def test_the_fingerprint_follows_the_commit_and_the_files(hub: Hub, tmp_path):
    mark = functools.partial(lambda **changes: open_source(config(tmp_path, **changes)).fingerprint)
    before = mark()
    assert before == mark(revision="main") == mark(revision=REPOSITORIES["acme/tiny"].commit)
    assert before != mark(split="test")
    hub.repositories["acme/tiny"] = Repository({**REPOSITORIES["acme/tiny"].files, "NEWS": b"1"})
    assert mark() != before
    assert "train.jsonl" not in hub.downloaded()


def test_a_revision_is_taken(hub: Hub, tmp_path):
    assert len(read(open_source(config(tmp_path, "acme/shards", revision="v1.0")))) == 9
    text = refusal(config(tmp_path, "acme/shards", revision="v2.0"))
    assert text == "hf_kwargs.revision is 'v2.0', but 'acme/shards' has no such branch, tag or commit"


def test_the_card_says_what_a_subset_is(hub: Hub, tmp_path):
    pairs = read(open_source(config(tmp_path, "acme/subsets", name="easy")))
    assert [place for place, _ in pairs[::5]] == ["acme/subsets/easy/a.jsonl:1", "acme/subsets/easy/b.jsonl:1"]
    pairs = read(open_source(config(tmp_path, "acme/subsets", "holdout", name="easy")))
    assert pairs[0][0] == "acme/subsets/easy/later/c.jsonl:1"


def test_data_files_and_data_dir_choose_files(hub: Hub, tmp_path):
    pairs = read(open_source(config(tmp_path, "acme/subsets", data_files="easy/b.*", name="easy")))
    assert pairs[0][0] == "acme/subsets/easy/b.jsonl:1"
    pairs = read(open_source(config(tmp_path, "acme/tiny", data_files=["test.jsonl", "te*.jsonl"])))
    assert [row for _, row in pairs] == ROWS
    pairs = read(open_source(config(tmp_path, "acme/shards", data_dir="data")))
    assert len(pairs) == 9


def test_what_only_the_library_reads_needs_safe_load_off(hub: Hub, tmp_path):
    text = refusal(config(tmp_path, "acme/lines"))
    assert text.startswith(
        "safe_load is true, but not all files of 'acme/lines' end in .jsonl, .json, .ndjson, .csv, .tsv,"
    )
    assert "(train.txt)" in text
    assert hub.downloaded() == []
    pairs = read(open_source(config(tmp_path, "acme/lines", safe_load=False)))
    assert pairs == [("acme/lines[train] row 1", {"text": "one"}), ("acme/lines[train] row 2", {"text": "two"})]
    assert hub.downloaded() == ["train.txt"]


def test_files_that_the_library_cannot_read_are_a_data_error(hub: Hub, tmp_path):
    hub.repositories["acme/broken"] = Repository({"train.arrow": b"no arrow at all"})
    with pytest.raises(DataError, match=r"acme/broken: the `datasets` library cannot read this dataset \(.+\)"):
        read(open_source(config(tmp_path, "acme/broken", safe_load=False)))


def test_settings_of_the_card_are_kept(hub: Hub, tmp_path):
    pairs = read(open_source(config(tmp_path, "acme/semicolons")))
    assert pairs[4] == ("acme/semicolons[train] row 5", {"prompt": "4?", "response": 12})
    assert hub.downloaded() == ["README.md", "a[1].csv"]


def test_compressed_files_are_safe_to_load(hub: Hub, tmp_path):
    files = {"train-0.jsonl.gz": gzip.compress(JSONL), "train-1.jsonl": JSONL, "train-2.ndjson": JSONL}
    hub.repositories["acme/packed"] = Repository(files)
    source = open_source(config(tmp_path, "acme/packed"))
    pairs = read(source)
    assert [row for _, row in pairs] == ROWS * 3
    assert [place for place, _ in pairs[::5]] == [f"acme/packed/{file}:1" for file in files]
    hub.repositories["acme/xz"] = Repository({"train.jsonl.xz": lzma.compress(JSONL)})
    assert "safe_load is true, but not all files of 'acme/xz' end in" in refusal(config(tmp_path, "acme/xz"))


def test_what_the_library_leaves_out_is_named(hub: Hub, tmp_path, capsys):
    files = {
        "train-0.jsonl": JSONL,
        "train-1.JSONL": JSONL,
        "test.jsonl": JSONL,
        ".x/a.jsonl": b"",
        "dataset_info.json": b"",
    }
    hub.repositories["acme/capitals"] = Repository(files)
    open_source(config(tmp_path, "acme/capitals"))
    expected = "hf_name is 'acme/capitals', but 1 file looks like data and is not read: train-1.JSONL\n"
    assert capsys.readouterr().out == expected


def test_empty_files_of_the_hub_are_skipped(hub: Hub, tmp_path, capsys):
    hub.repositories["acme/empty"] = Repository({"train-0.jsonl": b"", "train-1.jsonl": JSONL})
    assert len(read(open_source(config(tmp_path, "acme/empty")))) == 5
    assert "1 file has no rows and is skipped: acme/empty/train-0.jsonl\n" in capsys.readouterr().out


def test_slices_and_sums_of_splits(hub: Hub, tmp_path):
    pairs = read(open_source(config(tmp_path, "acme/tiny", "test[3:]+train[:40%]")))
    assert [place for place, _ in pairs] == [f"acme/tiny/{name}" for name in ("test.jsonl:4", "test.jsonl:5")] + [
        f"acme/tiny/train.jsonl:{line}" for line in (1, 2)
    ]
    marks = {open_source(config(tmp_path, split=split)).fingerprint for split in (None, "train[:40%]", "train[:2]")}
    assert len(marks) == 3
    assert refusal(config(tmp_path, split="train+dev[:5]")).startswith(
        "split is 'dev', but the splits of 'acme/tiny' are"
    )


def test_the_library_slices_what_it_reads(hub: Hub, tmp_path):
    pairs = read(open_source(config(tmp_path, "acme/lines", "train[1:]", safe_load=False)))
    assert [row for _, row in pairs] == [{"text": "two"}]


def test_data_files_may_be_named_by_split(hub: Hub, tmp_path):
    files = {"train": "easy/b.jsonl", "held": ["easy/a.jsonl", "easy/later/c.jsonl"]}
    for split, places in ((None, ["b.jsonl:1"]), ("held", ["a.jsonl:1", "later/c.jsonl:1"])):
        pairs = read(open_source(config(tmp_path, "acme/subsets", split, data_files=files, name="easy")))
        assert [place for place, _ in pairs[::5]] == [f"acme/subsets/easy/{place}" for place in places]
    text = refusal(config(tmp_path, "acme/subsets", "dev", data_files=files, name="easy"))
    assert "split is 'dev', but the splits of subset 'easy' of 'acme/subsets' are train, held" in text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"dataset": "acme/nowhere"},
            "hf_name is 'acme/nowhere', but the hub has no such dataset, or you have no access",
        ),
        ({"dataset": "a/b/c"}, "hf_name is 'a/b/c', which is neither an existing file or folder nor a valid name"),
        ({"dataset": "acme/closed"}, "hf_name is 'acme/closed', a gated dataset: request access"),
        ({"split": "dev"}, "split is 'dev', but the splits of 'acme/tiny' are train, test"),
        (
            {"dataset": "acme/code"},
            "hf_name is 'acme/code', which is loaded by its own script, but scripts of datasets are never run",
        ),
        ({"dataset": "acme/none"}, "hf_name is 'acme/none', but it contains no data (No (supp"),
        (
            {"dataset": "acme/mixed"},
            "hf_name is 'acme/mixed', but it contains no data (Couldn't infer the same data",
        ),
    ],
)
def test_missing_or_unreadable_datasets_are_reported(hub: Hub, tmp_path, settings, text):
    assert refusal(config(tmp_path, **settings)).startswith(text)


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({}, "hf_kwargs.name is None, but the subsets of 'acme/subsets' are easy, hard: choose one"),
        ({"name": "hrad"}, "hf_kwargs.name is 'hrad', but the subsets of 'acme/subsets' are easy, hard: choose one"),
        ({"data_dir": "no"}, "hf_kwargs.data_dir is 'no', but 'acme/subsets' has no such data (its files: README.md, "),
        ({"data_files": "no.csv", "name": "easy"}, "hf_kwargs.data_files is 'no.csv', but 'acme/subsets' has no such"),
    ],
)
def test_missing_subsets_and_files_are_reported(hub: Hub, tmp_path, kwargs, text):
    assert refusal(DatasetConfig(hf_name="acme/subsets", hf_kwargs=HFKwargs(**kwargs), max_seq_len=8)).startswith(text)


def test_a_token_opens_what_is_gated(hub: Hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert len(read(open_source(config(tmp_path, "acme/closed")))) == 5


def test_the_cache_is_enough_without_a_network(tmp_path, monkeypatch):
    with serve(REPOSITORIES) as hub:
        use_hub(monkeypatch, hub.endpoint, tmp_path)
        source = open_source(config(tmp_path))
        pairs = read(source)
    for offline in (False, True):
        use_hub(monkeypatch, hub.endpoint, tmp_path, offline=offline)
        again = open_source(config(tmp_path))
        assert again.fingerprint == source.fingerprint
        assert read(again) == pairs


def test_a_cache_without_our_list_of_files_is_enough(tmp_path, monkeypatch):
    with serve(REPOSITORIES) as hub:
        use_hub(monkeypatch, hub.endpoint, tmp_path)
        pairs = read(open_source(config(tmp_path)))
    use_hub(monkeypatch, hub.endpoint, tmp_path, offline=True)
    assert read(open_source(config(tmp_path / "other"))) == pairs
    text = refusal(config(tmp_path / "other", split="test"))
    assert text.endswith("are train (only the hub's cache was searched: HF_HUB_OFFLINE is set)")


def test_an_interrupted_download_is_not_taken_for_a_complete_one(tmp_path, monkeypatch):
    second = "data/train-00001-of-00002.parquet"
    with serve(REPOSITORIES) as hub:
        use_hub(monkeypatch, hub.endpoint, tmp_path)
        hub.withheld.add(second)
        with pytest.raises(DataError, match=r"the download of acme/shards was interrupted .*: run again to resume it"):
            read(open_source(config(tmp_path, "acme/shards")))
        use_hub(monkeypatch, hub.endpoint, tmp_path, offline=True)
        with pytest.raises(DataError, match=f"acme/shards/{second} is not in the hub's cache, and HF_HUB_OFFLINE is"):
            read(open_source(config(tmp_path, "acme/shards")))
        use_hub(monkeypatch, hub.endpoint, tmp_path)
        hub.withheld.clear()
        assert len(read(open_source(config(tmp_path, "acme/shards")))) == 9


def test_no_network_and_no_cache_is_an_error(tmp_path, monkeypatch):
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path)
    text = refusal(config(tmp_path))
    assert text.startswith(
        "hf_name is 'acme/tiny', but no network: http://127.0.0.1:9 cannot be reached (Connection refused), and the "
        f"dataset is not in the hub's cache ({tmp_path / 'hub'}): run once with a network connection"
    )


def test_a_hub_that_never_answers_is_given_up(tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(reach, "WAIT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_hub(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
        assert "cannot be reached (" in refusal(config(tmp_path))


SCRIPT = """
import sys
from data.config.dataset import DatasetConfig
from data.base.errors import ConfigError
from data.sources.source import open_source
try:
    source = open_source(DatasetConfig(hf_name=sys.argv[1], max_seq_len=8, cache_dir=sys.argv[2]))
    chunks = [chunk for slice in source.slices(1 << 40) for chunk in source.chunks(slice)]
    print(sum(1 for chunk in chunks for row in source.rows(chunk)), "rows")
except ConfigError as error:
    print(error)
"""


@pytest.mark.subprocess
def test_environment_variables_of_the_hub_are_used(tmp_path):
    """Runs in a separate process, in which the hub's library reads the variables itself."""

    def run(name="acme/tiny", **variables) -> str:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_HOME": str(tmp_path), "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | variables
        command = [sys.executable, "-c", SCRIPT, name, str(tmp_path / "cache")]
        return subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, timeout=60, check=True
        ).stdout

    with serve(REPOSITORIES) as hub:
        assert run(HF_ENDPOINT=hub.endpoint) == "5 rows\n"
    assert "cannot be reached (Connection refused)" in run("acme/other", HF_ENDPOINT=hub.endpoint)
