import errno
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from toy_tokenizer import ToyTokenizer, dataset_config, questions, write_jsonl

from data.chat import fit, tokenize_example
from data.config import HFKwargs
from data.errors import ConfigError, DataError
from data.examples import Example
from data.prepare import prepare
from data.rows import open_rows

TOY = ToyTokenizer()
FORK = multiprocessing.get_context("fork")


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def left_behind(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*") if path.suffix != ".lock")


def documents_of(rows) -> list[tuple[str, str]]:
    """Prompt and response of every document of every row, read back from tokens and mask."""
    out = []
    for row_id in range(rows.n_rows):
        row, start = rows.read(row_id), 0
        for length in row.lengths:
            tokens, mask = row.tokens[start : start + length], row.loss_mask[start : start + length] != 0
            out.append((TOY.decode(tokens[~mask]), TOY.decode(tokens[mask])))
            start += length
    return out


def test_only_the_response_and_its_end_are_trained_on():
    document = tokenize_example(Example("ab", "cde"), TOY)
    assert document.tokens.tolist() == [*b"abcde", 256]
    assert (document.n_prompt, document.trained_tokens) == (2, 4)


@pytest.mark.parametrize(("length", "kept"), [(6, b"abcde\0"), (5, b"abcde"), (3, b"abc"), (2, None), (1, None)])
def test_the_response_is_cut_and_a_prompt_that_fills_the_row_is_dropped(length, kept):
    fitted = fit(tokenize_example(Example("ab", "cde"), TOY), length)
    got = None if fitted is None else fitted.tokens.tolist()
    assert got == (None if kept is None else [256 if byte == 0 else byte for byte in kept])


@pytest.mark.parametrize("packing", ["best_fit", "none"])
def test_every_example_comes_back(tmp_path, packing):
    examples = questions(200)
    write_jsonl(tmp_path / "train.jsonl", examples)
    rows = open_rows(dataset_config(tmp_path, packing=packing), TOY)
    assert sorted(documents_of(rows)) == sorted((each["prompt"], each["response"]) for each in examples)
    if packing == "none":
        assert documents_of(rows) == [(each["prompt"], each["response"]) for each in examples]


def test_the_manifest_balances_and_is_what_the_rows_hold(tmp_path, capsys):
    examples = [*questions(50), {"prompt": "p" * 32, "response": "r"}, {"prompt": "p", "response": "r" * 40}]
    write_jsonl(tmp_path / "train.jsonl", examples)
    rows = open_rows(dataset_config(tmp_path), TOY)
    said = manifest_of(rows.folder)
    everything = [rows.read(row_id) for row_id in range(rows.n_rows)]
    assert said["tokens_in"] == sum(len(each["prompt"] + each["response"]) + 1 for each in examples)
    assert said["tokens_in"] == said["tokens_kept"] + said["tokens_truncated"] + said["tokens_dropped"]
    assert (said["tokens_truncated"], said["tokens_dropped"]) == (42 - 32, 34)
    assert (said["examples_in"], said["examples_kept"], said["examples_truncated"]) == (52, 51, 1)
    assert said["tokens_kept"] == rows.tokens == sum(len(row.tokens) for row in everything)
    assert said["trained_tokens"] == rows.trained_tokens == sum(int(row.loss_mask.sum()) for row in everything)
    assert said["padding"] == rows.n_rows * 32 - rows.tokens
    assert said["inputs"][0]["path"].endswith("train.jsonl")
    table = capsys.readouterr().out
    assert f"kept{51:>20}{rows.tokens:>18}" in table
    assert "dropped                1                34  the prompt leaves no room for a response" in table


def test_windows_hold_all_documents_and_bound_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("data.prepare.WINDOW_TOKENS", 100)
    write_jsonl(tmp_path / "train.jsonl", questions(100))
    documents = documents_of(open_rows(dataset_config(tmp_path), TOY))
    assert sorted(documents) == sorted((each["prompt"], each["response"]) for each in questions(100))
    first = [int(prompt.partition("?")[0]) for prompt, _ in documents[:10]]
    assert max(first) < 20


def test_prepared_rows_are_used_again(tmp_path, capsys):
    write_jsonl(tmp_path / "train.jsonl", questions(20))
    folder = prepare(dataset_config(tmp_path), TOY)
    before = (folder / "index.json").stat()
    capsys.readouterr()
    assert prepare(dataset_config(tmp_path), TOY) == folder
    assert (folder / "index.json").stat() == before
    assert capsys.readouterr().out == ""


def test_the_fingerprint_follows_what_matters(tmp_path):
    class OtherTokenizer(ToyTokenizer):
        fingerprint = "toy-2"

    write_jsonl(tmp_path / "train.jsonl", questions(20))
    write_jsonl(tmp_path / "moved" / "train.jsonl", questions(20))
    base = prepare(dataset_config(tmp_path), TOY)
    moved = HFKwargs(data_files=str(tmp_path / "moved" / "train.jsonl"))
    assert prepare(dataset_config(tmp_path, hf_kwargs=moved), TOY) == base
    columns = {"prompt": "response", "response": "prompt"}
    changes = [{"max_seq_len": 31}, {"packing": "none"}, {"preprocessing_fn": columns}]
    folders = {prepare(dataset_config(tmp_path, **change), TOY) for change in changes}
    folders |= {base, prepare(dataset_config(tmp_path), OtherTokenizer())}
    write_jsonl(tmp_path / "train.jsonl", questions(21))
    folders.add(prepare(dataset_config(tmp_path), TOY))
    assert len(folders) == 6


def test_the_same_input_gives_the_same_bytes(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", questions(100))
    one = prepare(dataset_config(tmp_path, cache_dir=str(tmp_path / "a")), TOY)
    two = prepare(dataset_config(tmp_path, cache_dir=str(tmp_path / "b")), TOY)
    assert sorted(path.name for path in one.iterdir()) == ["index.json", "manifest.json", "shard.00000.mds"]
    assert all(path.read_bytes() == (two / path.name).read_bytes() for path in one.iterdir())


def test_bad_rows_leave_nothing_behind(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [*questions(5), {"prompt": "a"}, {"prompt": "", "response": "b"}])
    with pytest.raises(DataError, match="2 rows cannot be used") as error:
        prepare(dataset_config(tmp_path), TOY)
    assert f"{tmp_path / 'train.jsonl'}:6: response is missing" in str(error.value)
    assert f"{tmp_path / 'train.jsonl'}:7: prompt is empty" in str(error.value)
    assert left_behind(tmp_path / "cache") == []


def test_a_dataset_whose_examples_are_all_dropped_is_refused(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "too long", "response": "a"}] * 3)
    with pytest.raises(DataError, match=r"none of the 3 examples can be used: .* in max_seq_len \(4\)"):
        prepare(dataset_config(tmp_path, max_seq_len=4), TOY)
    assert left_behind(tmp_path / "cache") == []


class FailingTokenizer(ToyTokenizer):
    """Fails, or dies, at its hundredth text."""

    def __init__(self, die: bool = False) -> None:
        self.texts, self.die = 0, die

    def encode(self, text):
        self.texts += 1
        if self.texts == 100:
            if self.die:
                os._exit(9)
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().encode(text)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("data.prepare.WINDOW_TOKENS", 100)
    write_jsonl(tmp_path / "train.jsonl", questions(200))
    with pytest.raises(DataError, match=r"no space is left for the rows in .*cache: free some, or set cache_dir"):
        prepare(dataset_config(tmp_path), FailingTokenizer())
    assert left_behind(tmp_path / "cache") == []


def test_a_killed_process_leaves_no_index_and_the_next_starts_again(tmp_path, monkeypatch):
    monkeypatch.setattr("data.prepare.WINDOW_TOKENS", 100)
    write_jsonl(tmp_path / "train.jsonl", questions(200))
    process = FORK.Process(target=prepare, args=(dataset_config(tmp_path), FailingTokenizer(die=True)))
    process.start()
    process.join()
    assert process.exitcode == 9
    (name,) = left_behind(tmp_path / "cache")
    assert name.endswith(".unfinished")
    assert not (tmp_path / "cache" / name / "index.json").exists()
    assert open_rows(dataset_config(tmp_path), TOY).n_rows > 10
    assert left_behind(tmp_path / "cache") == [name.removesuffix(".unfinished")]


class CountingTokenizer(ToyTokenizer):
    """Notes each text that it encodes in a file, and takes its time."""

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
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len((tmp_path / "count").read_text()) == 2 * 300
    assert open_rows(dataset_config(tmp_path), TOY).n_rows > 10


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", questions(3))
    config = dataset_config(tmp_path, cache_dir=str(tmp_path / "train.jsonl" / "cache"))
    with pytest.raises(ConfigError, match=r"cache_dir is '.*train.jsonl/cache', but it cannot be written"):
        prepare(config, TOY)


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Prepared rows in several shards."""
    monkeypatch.setattr("data.prepare.SHARD_BYTES", 2000)
    write_jsonl(tmp_path / "train.jsonl", questions(200))
    return open_rows(dataset_config(tmp_path), TOY)


def test_rows_are_found_in_their_shards(rows, tmp_path):
    assert len(rows.shard_sizes) > 3
    assert rows.shard_sizes.sum() == rows.n_rows
    assert sorted(documents_of(rows)) == sorted((each["prompt"], each["response"]) for each in questions(200))
    assert np.all(rows.read(rows.n_rows - 1).lengths > 0)


@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "index", "manifest"])
def test_damaged_folders_are_refused_when_opened(rows, tmp_path, damage):
    shard = rows.folder / "shard.00001.mds"
    content = shard.read_bytes()
    if damage == "missing":
        shard.unlink()
    elif damage == "short":
        shard.write_bytes(content[:-1])
    elif damage == "flipped":
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (rows.folder / f"{damage}.json").write_text("{")
    with pytest.raises(DataError) as error:
        open_rows(dataset_config(tmp_path), TOY)
    name = f"{damage}.json" if damage in ("index", "manifest") else "shard.00001.mds"
    assert str(rows.folder / name) in str(error.value)
    assert f"delete the folder {rows.folder.name}, and it is prepared again" in str(error.value)


def test_hashes_are_checked_once(rows, tmp_path, monkeypatch):
    def refuse(folder, shards):
        raise AssertionError("hashed again")

    monkeypatch.setattr("data.rows._check_hashes", refuse)
    assert open_rows(dataset_config(tmp_path), TOY).n_rows == rows.n_rows


def test_a_shard_that_breaks_later_is_named_when_it_is_read(rows):
    shard = rows.folder / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:300])
    with pytest.raises(DataError, match=r"row \d+ of .*shard.00000.mds cannot be read"):
        documents_of(rows)
    shard.unlink()
    with pytest.raises(DataError, match=r"row 0 of .*shard.00000.mds cannot be read \(FileNotFoundError"):
        rows.read(0)
