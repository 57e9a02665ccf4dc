import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import xxhash
from streaming import MDSWriter

from data.base.errors import ConfigError, DataError
from data.base.locks import exclusive
from data.config.dataset import DatasetConfig
from data.config.source import HFKwargs
from data.mds.row import COLUMNS, Row
from data.preparation.parts.progress import Waiting
from data.preparation.prepare import prepare, prepare_into
from data.sources.input_files import RECORD
from tests.helpers.prepared import TOY, contents, documents_of, manifest_of, samples_of
from tests.helpers.toy_tokenizer import ToyTokenizer, dataset_config, questions, write_jsonl

ROOT = Path(__file__).parents[2]
FORK = multiprocessing.get_context("fork")


def left_behind(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*") if path.suffix != ".lock" and path.name != RECORD)


def pairs(examples: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(each["prompt"], each["response"]) for each in examples]


def in_child(function, *args, **kwargs) -> int:
    """Run the function in a forked process, and return the exit code."""
    process = FORK.Process(target=function, args=args, kwargs=kwargs)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_every_example_comes_back(tmp_path, packing):
    examples = questions(200)
    write_jsonl(tmp_path / "train.jsonl", examples)
    documents = documents_of(prepare(dataset_config(tmp_path, packing=packing), TOY))
    assert sorted(documents) == sorted(pairs(examples))
    if packing == "none":
        assert documents == pairs(examples)


def text_config(folder: Path, texts: list[str], **changes) -> DatasetConfig:
    write_jsonl(folder / "train.jsonl", [{"text": text} for text in texts])
    return dataset_config(folder, **changes)


def test_texts_are_cut_and_continue_in_the_next_row(tmp_path):
    texts = [f"{i} " * (i % 90 + 1) for i in range(100)]
    folder = prepare(text_config(tmp_path, texts), TOY)
    rows = samples_of(folder)
    assert {len(row["tokens"]) for row in rows[:-1]} == {32}
    whole = np.concatenate([row["tokens"] for row in rows])
    assert whole.tolist() == [token for text in texts for token in (*text.encode(), 256)]
    ends = np.cumsum(np.concatenate([row["lengths"] for row in rows]))
    assert set(ends) == {*np.cumsum([len(text) + 1 for text in texts]), *range(32, len(whole), 32)}
    message = manifest_of(folder)
    assert (message["tokens_in"], message["tokens_kept"], message["examples_truncated"]) == (len(whole), len(whole), 0)
    assert message["trained_tokens"] == len(whole) - len(ends)


def test_a_large_text_is_sent_in_a_file(tmp_path, monkeypatch):
    texts = ["a" * 1000, "b", "c" * 500]
    expected = contents(prepare(text_config(tmp_path, texts, cache_dir=str(tmp_path / "a")), TOY))
    monkeypatch.setattr("data.preparation.packing.documents.SPOOLED_BYTES", 100)
    assert contents(prepare(text_config(tmp_path, texts, cache_dir=str(tmp_path / "b")), TOY)) == expected


def test_the_manifest_balances_and_matches_the_rows(tmp_path, capsys):
    examples = [*questions(50), {"prompt": "p" * 32, "response": "r"}, {"prompt": "p", "response": "r" * 40, "id": 7}]
    write_jsonl(tmp_path / "train.jsonl", examples)
    folder = prepare(dataset_config(tmp_path), TOY)
    message, rows = manifest_of(folder), samples_of(folder)
    assert message["tokens_in"] == sum(len(each["prompt"] + each["response"]) + 1 for each in examples)
    assert message["tokens_in"] == message["tokens_kept"] + message["tokens_truncated"] + message["tokens_dropped"]
    assert (message["tokens_truncated"], message["tokens_dropped"]) == (42 - 32, 34)
    assert (message["rows_in"], message["examples_in"], message["examples_kept"], message["examples_truncated"]) == (
        52,
        52,
        51,
        1,
    )
    assert message["dropped"] == {"the prompt leaves no room for a response": 1}
    assert message["tokens_kept"] == sum(len(row["tokens"]) for row in rows)
    assert message["trained_tokens"] == sum(int(row["loss_mask"].sum()) for row in rows)
    assert message["padding"] == message["rows"] * 32 - message["tokens_kept"]
    assert message["rows"] == len(rows)
    assert sum(message["document_lengths"].values()) == 52
    assert message["document_lengths"]["32"] == 2
    assert message["ignored_columns"] == {"id": 1}
    assert message["inputs"][0]["path"].endswith("train.jsonl")
    table = capsys.readouterr().out
    assert f"kept{51:>20}{message['tokens_kept']:>20}" in table
    assert "1                      the prompt leaves no room for a response" in table
    assert "ignored columns: id (1)" in table


def test_a_long_list_of_ignored_columns_is_cut(tmp_path, capsys):
    extra = {f"c{number:02}": 1 for number in range(25)}
    write_jsonl(tmp_path / "train.jsonl", [each | extra for each in questions(3)])
    message = manifest_of(prepare(dataset_config(tmp_path), TOY))
    assert len(message["ignored_columns"]) == 25
    assert "ignored columns: c00 (3), c01 (3), " in (out := capsys.readouterr().out)
    assert ", c09 (3) and 15 more\n" in out


def test_bad_rows_are_dropped_and_counted_where_that_is_asked_for(tmp_path, capsys):
    write_jsonl(tmp_path / "train.jsonl", [*questions(5), {"prompt": "a"}, [], *questions(5, start=5)])
    folder = prepare(dataset_config(tmp_path, on_bad_example="drop"), TOY)
    message = manifest_of(folder)
    assert sorted(documents_of(folder)) == sorted(pairs(questions(10)))
    assert (message["rows_in"], message["examples_kept"], message["dropped"]) == (12, 10, {"bad rows": 2})
    assert message["bad_rows"] == {"response is missing": 1, "not an object": 1}
    assert "bad rows: response is missing (1), not an object (1)" in capsys.readouterr().out


def test_rows_that_preprocessing_leaves_out_are_counted(tmp_path, monkeypatch):
    (tmp_path / "half_of_them.py").write_text(
        "def f(row):\n    return row if row['prompt'].startswith('1') else None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", questions(20))
    message = manifest_of(prepare(dataset_config(tmp_path, preprocessing_fn="half_of_them:f"), TOY))
    assert (message["rows_in"], message["examples_in"], message["dropped"]) == (
        20,
        11,
        {"preprocessing_fn returned None": 9},
    )


def test_windows_bound_how_far_documents_move(tmp_path, small_pieces):
    write_jsonl(tmp_path / "train.jsonl", questions(500))
    documents = documents_of(prepare(dataset_config(tmp_path), TOY))
    assert sorted(documents) == sorted(pairs(questions(500)))
    first = [int(prompt.partition("?")[0]) for prompt, _ in documents[:10]]
    assert max(first) < 150


def test_prepared_rows_are_used_again(tmp_path, capsys):
    write_jsonl(tmp_path / "train.jsonl", questions(20))
    folder = prepare(dataset_config(tmp_path), TOY)
    before = (folder / "index.json").stat()
    capsys.readouterr()
    assert prepare(dataset_config(tmp_path), TOY) == folder
    assert (folder / "index.json").stat() == before
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("local_rank", "n_shown"), [(0, 1), (1, 0)])
def test_local_rank_0_shows_once_what_another_rank_prepared(tmp_path, monkeypatch, capfd, local_rank, n_shown):
    """Launchers show only the output of local rank 0. It may take the lock after the other rank has finished."""

    @contextmanager
    def after_another(path, waiting):
        monkeypatch.setattr("data.preparation.prepare.exclusive", exclusive)
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert in_child(prepare, config, TOY) == 0
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        yield

    write_jsonl(tmp_path / "train.jsonl", questions(20))
    config = dataset_config(tmp_path, prepare_workers=1)
    monkeypatch.setattr("data.base.locks.HEAD_START", 0)
    monkeypatch.setattr("data.preparation.prepare.exclusive", after_another)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    prepare(config, TOY)
    prepare(config, TOY)
    assert capfd.readouterr().out.count("Prepared") == n_shown


def test_a_process_that_is_alone_shows_what_it_prepared(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("data.base.locks.HEAD_START", 0)
    write_jsonl(tmp_path / "train.jsonl", questions(20))
    prepare(dataset_config(tmp_path, prepare_workers=1), TOY)
    assert capsys.readouterr().out.count("Prepared") == 1


def test_the_fingerprint_follows_what_matters(tmp_path):
    class OtherTokenizer(ToyTokenizer):
        fingerprint = "toy-2"

    write_jsonl(tmp_path / "train.jsonl", questions(20))
    write_jsonl(tmp_path / "moved" / "train.jsonl", questions(20))
    base = prepare(dataset_config(tmp_path), TOY)
    moved = HFKwargs(data_files=str(tmp_path / "moved" / "train.jsonl"))
    assert prepare(dataset_config(tmp_path, hf_kwargs=moved, prepare_workers=1), TOY) == base
    changes = [
        {"max_seq_len": 31},
        {"packing": "none"},
        {"preprocessing_fn": {"prompt": "response", "response": "prompt"}},
        {"target_prompts": "all"},
        {"target_responses": "all"},
        {"excess_length": "drop"},
        {"on_bad_example": "drop"},
    ]
    folders = {prepare(dataset_config(tmp_path, **change), TOY) for change in changes}
    folders |= {base, prepare(dataset_config(tmp_path), OtherTokenizer())}
    write_jsonl(tmp_path / "train.jsonl", questions(21))
    folders.add(prepare(dataset_config(tmp_path), TOY))
    assert len(folders) == len(changes) + 3


def test_rows_are_not_prepared_again_for_a_comment(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", questions(20))

    def folder_of(source: str) -> Path:
        (tmp_path / "reworded.py").write_text(source)
        monkeypatch.delitem(sys.modules, "reworded", raising=False)
        return prepare(dataset_config(tmp_path, preprocessing_fn="reworded:make"), TOY)

    make = 'def make(row):\n    """Ends rows."""\n    return row | {"response": row["prompt"] + END}\n'
    first = folder_of(f'END = "."\n{make}')
    same = folder_of(f'END = "."  # what ends\n\n{make.replace("Ends", "Ends all")}')
    other = folder_of(f'END = "!"\n{make}')
    assert first == same != other


@pytest.mark.parametrize("rows", ["questions", "texts"])
def test_any_number_of_workers_gives_the_same_bytes(tmp_path, small_pieces, rows):
    texts = [{"text": f"{i} " * (i % 50 + 1)} for i in range(100)]
    write_jsonl(tmp_path / "train.jsonl", questions(400) if rows == "questions" else texts)
    for workers in (1, 2, 5):
        prepare_into(tmp_path / str(workers), dataset_config(tmp_path, prepare_workers=workers), TOY)
    names = contents(tmp_path / "1").keys()
    assert {"index.json", "manifest.json", "shard.00003.00.mds"} < names
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "5")


def test_the_index_has_the_shards_hashes(tmp_path, small_pieces):
    write_jsonl(tmp_path / "train.jsonl", questions(200))
    folder = prepare(dataset_config(tmp_path), TOY)
    for entry in json.loads((folder / "index.json").read_text())["shards"]:
        content = (folder / entry["raw_data"]["basename"]).read_bytes()
        assert entry["raw_data"]["hashes"] == {"xxh64": xxhash.xxh64_hexdigest(content)}


@pytest.mark.parametrize("workers", [1, 2])
def test_all_bad_rows_are_found_in_one_pass_and_leave_nothing(tmp_path, small_pieces, workers):
    bad = [{"prompt": "a"}, *questions(300, start=100), {"prompt": "", "response": "b"}, {"text": "c"}]
    write_jsonl(tmp_path / "train.jsonl", [*questions(100), *bad])
    with pytest.raises(DataError, match="3 rows cannot be used") as error:
        prepare(dataset_config(tmp_path, prepare_workers=workers), TOY)
    for line, problem in ((101, "response is missing"), (402, "prompt is empty"), (403, "has text, but earlier rows")):
        assert f"{tmp_path / 'train.jsonl'}:{line}: {problem}" in str(error.value)
    assert left_behind(tmp_path / "cache") == []


def test_problems_found_in_tokens_are_reported_with_other_bad_rows(tmp_path, small_pieces):
    examples = [{"prompt": "a"}, *questions(100), {"prompt": "p", "response": "r" * 40}]
    write_jsonl(tmp_path / "train.jsonl", examples)
    with pytest.raises(DataError, match="cannot be used") as error:
        prepare(dataset_config(tmp_path, excess_length="error", max_seq_len=30), TOY)
    assert f"{tmp_path / 'train.jsonl'}:102: has 42 tokens, but max_seq_len is 30" in str(error.value)


def test_a_dataset_whose_examples_are_all_dropped_is_refused(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "too long", "response": "a"}] * 3)
    text = (
        r"none of the 3 rows .*: the prompt leaves no room for a response \(3\): max_seq_len is 4: increase the value"
    )
    with pytest.raises(DataError, match=text):
        prepare(dataset_config(tmp_path, max_seq_len=4), TOY)
    assert left_behind(tmp_path / "cache") == []


def test_a_dataset_of_bad_rows_alone_is_refused_with_what_is_wrong(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "a"}] * 3)
    text = r"none of the 3 rows can be used: bad rows \(3\): fix the bad rows \(response is missing \(3\)\)"
    with pytest.raises(DataError, match=text):
        prepare(dataset_config(tmp_path, on_bad_example="drop"), TOY)


def undisturbed(tmp_path: Path) -> dict[str, bytes]:
    prepare_into(tmp_path / "undisturbed", dataset_config(tmp_path), TOY)
    return contents(tmp_path / "undisturbed")


def die_at_rename(number: int, folder: Path, config: DatasetConfig) -> None:
    """kill -9 just before the nth new file name in the folder. Other moments need no test."""
    numbers, rename = count(1), Path.rename

    def rename_or_die(self, target):
        if next(numbers) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.rename = rename_or_die
    prepare_into(folder, config, TOY)


def test_killed_anywhere_it_leaves_no_index_and_resumes_to_the_same_bytes(tmp_path, small_pieces):
    write_jsonl(tmp_path / "train.jsonl", questions(250))
    config = dataset_config(tmp_path, prepare_workers=1)
    expected = undisturbed(tmp_path)
    for number in count(1):
        folder = tmp_path / str(number)
        killed = in_child(die_at_rename, number, folder, config) == -signal.SIGKILL
        if not killed:
            break
        assert not (folder / "index.json").exists()
        prepare_into(folder, config, TOY)
        assert contents(folder) == expected
    assert number > 20


def test_killed_repeatedly_it_resumes_from_its_last_window(tmp_path, small_pieces):
    write_jsonl(tmp_path / "train.jsonl", questions(250))
    expected, folder = undisturbed(tmp_path), tmp_path / "out"
    config = dataset_config(tmp_path, prepare_workers=1)
    kills = 0
    # Six names are more than one window needs, and far fewer than all windows need.
    while in_child(die_at_rename, 6, folder, config) == -signal.SIGKILL:
        kills += 1
        assert kills < 50
    assert kills > 3
    assert contents(folder) == expected


def test_killed_while_it_writes_a_shard_it_resumes(tmp_path, small_pieces, monkeypatch):
    write_jsonl(tmp_path / "train.jsonl", questions(250))
    config, expected = dataset_config(tmp_path, prepare_workers=1), undisturbed(tmp_path)

    def half_a_shard(self):
        (Path(self.local) / "shard.00000.mds").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(MDSWriter, "flush_shard", half_a_shard)
        assert in_child(prepare_into, tmp_path / "out", config, TOY) == -signal.SIGKILL
    prepare_into(tmp_path / "out", config, TOY)
    assert contents(tmp_path / "out") == expected


def test_a_full_disk_is_reported_and_what_is_done_is_kept(tmp_path, small_pieces, monkeypatch):
    write_jsonl(tmp_path / "train.jsonl", questions(250))
    config, expected = dataset_config(tmp_path, prepare_workers=1), undisturbed(tmp_path)
    numbers, flush = count(1), MDSWriter.flush_shard

    def full(self):
        if next(numbers) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(self)

    with monkeypatch.context() as patch:
        patch.setattr(MDSWriter, "flush_shard", full)
        with pytest.raises(DataError, match=r"out has no space left: free some space and start again"):
            prepare_into(tmp_path / "out", config, TOY)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["unfinished"]
    prepare_into(tmp_path / "out", config, TOY)
    assert contents(tmp_path / "out") == expected


class DyingTokenizer(ToyTokenizer):
    """A tokenizer whose process is killed at one of the texts."""

    def encode(self, text):
        if text.startswith("200?"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(text)


def test_a_worker_that_is_killed_is_one_clear_error(tmp_path, small_pieces):
    write_jsonl(tmp_path / "train.jsonl", questions(250))
    with pytest.raises(DataError, match=r"a worker process was killed \(signal 9 .*smaller value of prepare_workers"):
        prepare(dataset_config(tmp_path, prepare_workers=2), DyingTokenizer())
    assert not list((tmp_path / "cache").rglob("index.json"))


ENDS = {
    "sys.exit(0)": r"exit code 0 \(SystemExit at .*ends.py:3\)",
    "os._exit(3)": r"exit code 3",
    "os.kill(os.getpid(), 31)": r"a process that ran this function was ended by signal 31 \(SIGSYS\)",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_preprocessing_fn_that_ends_its_process_is_named(tmp_path, monkeypatch, small_pieces, end, workers):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ends", raising=False)
    (tmp_path / "ends.py").write_text(
        f"import os, sys\ndef make(row):\n    return {end} if '200?' in row['prompt'] else row\n"
    )
    write_jsonl(tmp_path / "train.jsonl", questions(250))
    with pytest.raises(DataError, match=rf"preprocessing_fn is 'ends:make', but .*{ENDS[end]}"):
        prepare(dataset_config(tmp_path, preprocessing_fn="ends:make", prepare_workers=workers), TOY)
    assert not list((tmp_path / "cache").rglob("index.json"))


class SleepingTokenizer(ToyTokenizer):
    """A tokenizer that records its process and never finishes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def encode(self, text):
        (self.folder / str(os.getpid())).touch()
        time.sleep(1000)
        return super().encode(text)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_die_with_their_parent(tmp_path, small_pieces):
    write_jsonl(tmp_path / "train.jsonl", questions(250))
    (tmp_path / "pids").mkdir()
    config = dataset_config(tmp_path, prepare_workers=2)
    parent = FORK.Process(target=prepare, args=(config, SleepingTokenizer(tmp_path / "pids")))
    parent.start()
    deadline = time.monotonic() + 30
    while not (pids := [int(path.name) for path in (tmp_path / "pids").iterdir()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pids
    assert parent.pid not in pids
    parent.kill()
    parent.join()
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(is_alive(pid) for pid in pids)


def test_input_that_changes_while_it_is_read_is_refused(tmp_path, small_pieces):
    class Appending(ToyTokenizer):
        def encode(self, text):
            if text.startswith("100?"):
                with (tmp_path / "train.jsonl").open("a") as file:
                    file.write('{"prompt": "more", "response": "more"}\n')
            return super().encode(text)

    write_jsonl(tmp_path / "train.jsonl", questions(250))
    with pytest.raises(DataError, match="changed while it was being read"):
        prepare(dataset_config(tmp_path, prepare_workers=1), Appending())
    assert left_behind(tmp_path / "cache") == []


@pytest.mark.parametrize("whole", [True, False])
def test_other_settings_into_the_same_folder_are_refused(tmp_path, small_pieces, whole):
    write_jsonl(tmp_path / "train.jsonl", questions(100))
    folder, config = tmp_path / "out", dataset_config(tmp_path, prepare_workers=1)
    if whole:
        prepare_into(folder, config, TOY)
    else:
        in_child(die_at_rename, 5, folder, config)
    before = contents(folder)
    other = dataset_config(tmp_path, prepare_workers=1, max_seq_len=64)
    with pytest.raises(
        ConfigError, match=r"out was prepared from other data or settings \(max_seq_len was 32, now 64\)"
    ):
        prepare_into(folder, other, TOY)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["index.json", "manifest.json", "shard.00000.mds", "unfinished/notes.txt"])
def test_names_in_the_way_are_refused(tmp_path, name):
    write_jsonl(tmp_path / "train.jsonl", questions(10))
    foreign = tmp_path / "out" / name
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    with pytest.raises(
        ConfigError, match=rf"out has an? ?{name.partition('/')[0]}|out already contains {name.partition('/')[0]}"
    ):
        prepare_into(tmp_path / "out", dataset_config(tmp_path), TOY)
    assert contents(tmp_path / "out") == {name: b"mine"}


def test_files_of_others_stay(tmp_path, small_pieces):
    write_jsonl(tmp_path / "train.jsonl", questions(100))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    in_child(die_at_rename, 5, tmp_path / "out", dataset_config(tmp_path))
    prepare_into(tmp_path / "out", dataset_config(tmp_path), TOY)
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "bad"}])
    with pytest.raises(ConfigError, match="prepared from other data or settings"):
        prepare_into(tmp_path / "out", dataset_config(tmp_path), TOY)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "out" / "index.json").exists()


class CountingTokenizer(ToyTokenizer):
    """A tokenizer that records each text it encodes in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def encode(self, text):
        with self.file.open("a") as file:
            file.write("x")
        return super().encode(text)


def test_processes_that_prepare_the_same_do_the_work_once(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", questions(300))
    tokenizer = CountingTokenizer(tmp_path / "count")
    processes = [FORK.Process(target=prepare, args=(dataset_config(tmp_path), tokenizer)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len((tmp_path / "count").read_text()) == 2 * 300
    (name,) = left_behind(tmp_path / "cache")
    assert manifest_of(tmp_path / "cache" / name)["rows"] > 10


def test_waiting_processes_show_the_progress(tmp_path, small_pieces, capsys, monkeypatch):
    monkeypatch.setattr("data.preparation.parts.progress.BAR_DELAY", 0)
    monkeypatch.setattr("data.preparation.parts.progress.MININTERVAL", 0)
    write_jsonl(tmp_path / "train.jsonl", questions(250))
    in_child(die_at_rename, 12, tmp_path / "out", dataset_config(tmp_path, prepare_workers=1))
    waiting = Waiting(tmp_path / "out", "B")
    waiting()
    waiting()
    shown = capsys.readouterr()
    assert shown.out.count("Waiting for another process to prepare the same rows") == 1
    assert any(f"{percent}%|" in shown.err for percent in range(10, 90))


@pytest.mark.parametrize("place", ["train.jsonl/cache", "x" * 300])
def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch, place):
    """Also on a file system that allows only shorter names than the config check does."""
    monkeypatch.setattr("data.base.paths.MAX_NAME_BYTES", 1000)
    write_jsonl(tmp_path / "train.jsonl", questions(3))
    config = dataset_config(tmp_path, cache_dir=str(tmp_path / place))
    with pytest.raises(ConfigError, match=rf"cache_dir is '.*{place}', but it cannot be written"):
        prepare(config, TOY)


def test_compressed_shards_are_what_streaming_reads(tmp_path, small_pieces):
    write_jsonl(tmp_path / "train.jsonl", questions(100))
    prepare_into(tmp_path / "plain", dataset_config(tmp_path), TOY)
    prepare_into(tmp_path / "zstd", dataset_config(tmp_path), TOY, compression="zstd")
    assert "shard.00001.00.mds.zstd" in contents(tmp_path / "zstd")
    assert documents_of(tmp_path / "zstd") == documents_of(tmp_path / "plain")
    with pytest.raises(ConfigError, match=r"compression is 'rar', but it must be one of .*zstd"):
        prepare_into(tmp_path / "rar", dataset_config(tmp_path), TOY, compression="rar")
    assert not (tmp_path / "rar").exists()


def test_a_remote_folder_gets_all_of_it_the_index_last(tmp_path, small_pieces, monkeypatch):
    from streaming.base.storage.upload import LocalUploader

    write_jsonl(tmp_path / "train.jsonl", questions(100))
    sent, upload = [], LocalUploader.upload_file

    def note(self, name):
        sent.append(name)
        if len(sent) == 3:
            raise OSError(errno.EIO, "the network is gone")
        upload(self, name)

    monkeypatch.setattr(LocalUploader, "upload_file", note)
    settings = {"config": dataset_config(tmp_path), "tokenizer": TOY, "remote": str(tmp_path / "remote")}
    with pytest.raises(DataError, match=r"out could not be uploaded completely to .*remote' .*the network is gone"):
        prepare_into(tmp_path / "out", **settings)
    assert not (tmp_path / "remote" / "index.json").exists()
    prepare_into(tmp_path / "out", **settings)
    assert sent[-1] == "index.json"
    assert contents(tmp_path / "remote") == contents(tmp_path / "out")
    n_sent = len(sent)
    prepare_into(tmp_path / "out", **settings)
    assert len(sent) == n_sent


def test_a_remote_with_another_dataset_is_refused_before_the_work(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", questions(10))
    remote = str(tmp_path / "remote")
    prepare_into(tmp_path / "a", dataset_config(tmp_path), TOY, remote=remote)
    with pytest.raises(
        ConfigError, match=r"remote was prepared from other data or settings \(max_seq_len was 32, now 64\)"
    ):
        prepare_into(tmp_path / "b", dataset_config(tmp_path, max_seq_len=64), TOY, remote=remote)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("n", [1, 255, 256, 65_535, 65_536])
def test_rows_are_encoded_as_mdswriter_does(tmp_path, n):
    writer = MDSWriter(columns=COLUMNS, out=str(tmp_path / "out"))
    rng = np.random.default_rng(n)
    row = {
        "tokens": rng.integers(0, 1 << 20, n).astype(np.int32),
        "loss_mask": rng.integers(0, 2, n).astype(np.uint8),
        "lengths": rng.integers(1, 9, max(n // 200, 1)).astype(np.int32),
    }
    assert Row(**row).encode() == writer.encode_sample(row)


MEASURED = """
import resource, sys
from pathlib import Path
from data.config.dataset import DatasetConfig
from data.config.tokenizer import TokenizerConfig, TokenizerKwargs
from data.preparation.prepare import prepare_into
from data.tokenization.build import build_tokenizer
kwargs = TokenizerKwargs(vocab_file="quickstart/vocab.tiktoken")
tokenizer = build_tokenizer(TokenizerConfig(name="tiktoken", kwargs=kwargs))
config = DatasetConfig(hf_name=sys.argv[1] + "/train.jsonl", max_seq_len=2048, prepare_workers=2)
prepare_into(Path(sys.argv[1]) / "out", config, tokenizer)
# The ru_maxrss of the process is not used because it starts with that of its parent.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(int(peak) // 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


@pytest.mark.subprocess
@pytest.mark.proof
@pytest.mark.parametrize(("what", "rows"), [("words", 1), ("words", 4), ("one letter", 1)])
def test_rows_of_60_mb_are_held_in_less_than_a_gigabyte(tmp_path, what, rows):
    words = (f"word{i % 9973} " if what == "words" else "aaaaaaaaaa" for i in range(7_000_000))
    text = "".join(words)[: 60 << 20]
    write_jsonl(tmp_path / "train.jsonl", [{"text": text}] * rows)
    command = [sys.executable, "-c", MEASURED, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parent, worker = (int(word) for word in done.stdout.split()[-2:])
    assert parent < 1024
    assert worker < 1024
