"""Which files are read (through links, by patterns, by splits), and messages about files that are not read."""

import os

import pytest

from data.base import console
from data.base.errors import ConfigError
from data.config.dataset import DatasetConfig
from data.config.source import HFKwargs
from data.sources.find import find
from data.sources.source import open_source
from tests.helpers.read_source import of_file, of_folder, read, values
from tests.helpers.toy_tokenizer import write_jsonl


@pytest.fixture(autouse=True)
def nothing_printed_yet():
    console.notice.cache_clear()


def rows(*numbers) -> list:
    return [{"prompt": str(number), "response": "a"} for number in numbers]


def prompts(config) -> list[int]:
    return [int(row["prompt"]) for row in values(read(open_source(config)))]


def names(config, folder) -> list[str]:
    return [str(path.relative_to(folder)) for part in find(config)[1] for path in part.files]


def test_files_behind_a_linked_folder_are_read(tmp_path):
    write_jsonl(tmp_path / "disk" / "b.jsonl", rows(2))
    write_jsonl(tmp_path / "ds" / "part1" / "a.jsonl", rows(1))
    (tmp_path / "ds" / "part2").symlink_to(tmp_path / "disk")
    pairs = read(open_source(of_folder(tmp_path / "ds")))
    assert [place for place, _ in pairs] == [f"{tmp_path}/ds/part1/a.jsonl:1", f"{tmp_path}/ds/part2/b.jsonl:1"]


def test_links_in_a_circle_end(tmp_path, capsys):
    write_jsonl(tmp_path / "ds" / "x" / "a.jsonl", rows(1))
    (tmp_path / "ds" / "x" / "up").symlink_to(tmp_path / "ds")
    (tmp_path / "ds" / "x" / "here").symlink_to(".")
    assert names(of_folder(tmp_path / "ds"), tmp_path / "ds") == ["x/a.jsonl"]
    assert capsys.readouterr().out == ""


def test_a_file_under_two_names_is_read_once_with_a_line(tmp_path, capsys):
    for number in range(12):
        write_jsonl(tmp_path / "ds" / "a" / f"{number:02}.jsonl", rows(number))
    (tmp_path / "ds" / "b").symlink_to("a")
    config = of_folder(tmp_path / "ds")
    assert prompts(config) == list(range(12))
    printed = capsys.readouterr().out
    assert printed.startswith("skipped 12 paths to files that are already included: ")
    assert printed.count("(same as ") == 10
    assert printed.endswith(" and 2 more\n")
    open_source(config)
    assert capsys.readouterr().out == ""


def test_a_folder_may_be_in_two_splits(tmp_path):
    write_jsonl(tmp_path / "all" / "a.jsonl", rows(1))
    for split in ("train", "test"):
        (tmp_path / "ds").mkdir(exist_ok=True)
        (tmp_path / "ds" / split).symlink_to(tmp_path / "all")
        assert names(of_folder(tmp_path / "ds", split), tmp_path / "ds") == [f"{split}/a.jsonl"]


def test_a_link_that_leads_nowhere_is_refused(tmp_path):
    write_jsonl(tmp_path / "train-0.jsonl", rows(1))
    (tmp_path / "train-1.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(
        ConfigError, match=r"train-1.jsonl' is a link to 'gone.jsonl', which does not exist: restore the"
    ):
        open_source(of_folder(tmp_path))
    with pytest.raises(ConfigError, match=r"train-1.jsonl' is a link to 'gone.jsonl', which does not exist"):
        open_source(of_file(tmp_path / "*.jsonl", "json"))


def test_a_pipe_is_no_data_file(tmp_path):
    os.mkfifo(tmp_path / "b.jsonl")
    write_jsonl(tmp_path / "a.jsonl", rows(1))
    assert names(of_folder(tmp_path), tmp_path) == ["a.jsonl"]


def test_suffixes_are_read_in_any_case(tmp_path):
    for number, name in enumerate(("a.JSONL", "b.ndjson", "c.Json", "d.jsonl")):
        write_jsonl(tmp_path / name, rows(number))
    assert prompts(of_folder(tmp_path)) == [0, 1, 2, 3]


def test_what_looks_like_data_and_is_not_read_is_named(tmp_path, capsys):
    write_jsonl(tmp_path / "train.jsonl", rows(1))
    for name in ("test.jsonl", "readme.txt", "config.json", ".hidden.jsonl", "train.py", "test.bz2"):
        (tmp_path / name).write_text("x")
    (tmp_path / "more").mkdir()
    for name in ("train.jsonl.bz2", "a.jsonl", "notes.txt", "b.parquet.gz", "c.arrow"):
        (tmp_path / "more" / name).write_text("x")
    open_source(of_folder(tmp_path))
    assert capsys.readouterr().out == (
        f"hf_name is {str(tmp_path)!r} and split 'train', but 5 files look like data and are not read: more/a.jsonl, "
        "more/b.parquet.gz, more/c.arrow, more/notes.txt, more/train.jsonl.bz2\n"
    )


def test_other_ranks_print_no_notice(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    write_jsonl(tmp_path / "train.jsonl", rows(1))
    (tmp_path / "train.zip").write_text("x")
    open_source(of_folder(tmp_path))
    assert capsys.readouterr().out == ""


def test_other_formats_beside_the_one_that_is_read_are_named(tmp_path, capsys):
    write_jsonl(tmp_path / "a.jsonl", rows(1))
    (tmp_path / "b.csv").write_text("prompt,response\n")
    open_source(DatasetConfig(hf_name="json", hf_kwargs=HFKwargs(data_dir=str(tmp_path)), max_seq_len=8))
    assert capsys.readouterr().out.endswith("but 1 file looks like data and is not read: b.csv\n")


def test_a_folder_of_text_is_read(tmp_path, capsys):
    for name in ("a.txt", "b/C.TXT", "d.md", "e.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    pairs = read(open_source(DatasetConfig(text=str(tmp_path), max_seq_len=8)))
    assert values(pairs) == [{"text": "a.txt"}, {"text": "b/C.TXT"}]
    assert capsys.readouterr().out.endswith("but 1 file looks like data and is not read: e.jsonl\n")


@pytest.mark.parametrize("folder", ["run [v1]", "a b", "what*", "*", "[a]/[!b]?"])
def test_folders_may_have_any_name(tmp_path, folder):
    for number in range(2):
        write_jsonl(tmp_path / folder / f"{number}.jsonl", rows(number))
    write_jsonl(tmp_path / "whatever" / "2.jsonl", rows(2))
    pattern = str(tmp_path / folder / "*.jsonl")
    assert prompts(of_file(pattern, "json")) == [0, 1]
    assert prompts(of_folder(tmp_path / folder, data_files="[01].jsonl")) == [0, 1]
    inside = HFKwargs(data_dir=str(tmp_path / folder), data_files="*.jsonl")
    assert prompts(DatasetConfig(hf_name="json", hf_kwargs=inside, max_seq_len=8)) == [0, 1]
    assert len(read(open_source(DatasetConfig(text=pattern, max_seq_len=8)))) == 2


def test_a_pattern_may_be_of_folders(tmp_path):
    for number in range(3):
        write_jsonl(tmp_path / f"run {number} [x]" / "deep" / "a.jsonl", rows(number))
    assert prompts(of_file(tmp_path / "run [01]*" / "**" / "*.jsonl", "json")) == [0, 1]
    with pytest.raises(
        ConfigError,
        match=r"no such file exists \(in a pattern, \[...\] matches one of the characters in the brackets; write",
    ):
        open_source(of_file(tmp_path / "none[1].jsonl", "json"))


def test_data_files_may_be_named_by_split(tmp_path):
    for number, name in enumerate(("x", "y", "z")):
        write_jsonl(tmp_path / f"{name}.jsonl", rows(number))
    files = {"train": str(tmp_path / "x.jsonl"), "test": [str(tmp_path / "z.jsonl"), str(tmp_path / "y.jsonl")]}

    def config(split):
        return DatasetConfig(hf_name="json", split=split, hf_kwargs=HFKwargs(data_files=files), max_seq_len=8)

    assert [prompts(config(split)) for split in (None, "train", "test")] == [[0], [0], [2, 1]]
    with pytest.raises(ConfigError, match=r"split is 'dev', but the splits of hf_kwargs.data_files are train, test"):
        open_source(config("dev"))


ADDRESS = "https://me:secret@host/a/train.jsonl?token=abc"


@pytest.mark.parametrize(
    "make",
    [
        lambda address: HFKwargs(data_files=address),
        lambda address: HFKwargs(data_files={"train": ["a.jsonl", address]}),
        lambda address: HFKwargs(data_dir=address),
        lambda address: DatasetConfig(hf_name=address, max_seq_len=8),
        lambda address: DatasetConfig(text=address, max_seq_len=8),
    ],
)
def test_an_address_of_another_scheme_is_no_data_file(make):
    for address, shown in ((ADDRESS, "https://***@host/a/train.jsonl?token=***"), ("hf://b/x", "hf://b/x")):
        with pytest.raises(ValueError, match="only read from") as error:
            make(address)
        text = f"has {shown!r}, but data files are only read from folders and from object stores (s3:// and gs://)"
        assert f"{text}: download" in str(error.value)
    make("s3://b/x")


def test_a_folder_here_comes_before_a_dataset_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "mine" / "train.jsonl", rows(1))
    assert prompts(DatasetConfig(hf_name="mine", max_seq_len=8)) == [1]


@pytest.mark.parametrize("name", ["a/" + "x" * 300, "~no-such-user-here/a.jsonl"])
def test_an_invalid_path_is_a_config_error(tmp_path, monkeypatch, name):
    """Also on a file system that allows only shorter names than the config check does."""
    monkeypatch.setattr("data.base.paths.MAX_NAME_BYTES", 1000)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    for config in (of_folder(name), of_file(name, "json"), DatasetConfig(text=name, max_seq_len=8)):
        with pytest.raises(ConfigError, match=r"cannot be accessed \(File name too long|write the path in full"):
            open_source(config)
    with pytest.raises(ConfigError, match=r"cannot be accessed \(File name too long|write the path in full"):
        open_source(DatasetConfig(hf_name="json", hf_kwargs=HFKwargs(data_dir=name), max_seq_len=8))
    with pytest.raises(ValueError, match=r"data_files.test has 'a\\x00b', but a path cannot contain a NUL byte"):
        HFKwargs(data_files={"test": "a\0b"})


def test_a_folder_without_text_files_suggests_a_pattern(tmp_path):
    for name in ("a.md", "b/c.md", "d.rst"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    with pytest.raises(ConfigError, match=r"contains 2 \.md, 1 \.rst\): .* such as (?:text: )(.*\.md)$") as error:
        open_source(DatasetConfig(text=str(tmp_path), max_seq_len=8))
    pattern = str(error.value).rpartition("text: ")[2]
    assert len(read(open_source(DatasetConfig(text=pattern, max_seq_len=8)))) == 2


def test_a_folder_of_records_is_not_suggested_as_text(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", rows(1))
    with pytest.raises(ConfigError, match=r"contains 1 \.jsonl\): to read records, set hf_name: json and .*\*\.jsonl"):
        open_source(DatasetConfig(text=str(tmp_path), max_seq_len=8))


def test_a_folder_of_text_files_in_hf_name_suggests_text(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ConfigError, match=f"specify text files in text: {tmp_path}$"):
        find(of_folder(tmp_path))
