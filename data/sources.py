"""Where rows come from: the files that a config names, and their rows with file and line number.

Local JSONL for now. A further source is another way to give `(place, row)` pairs to data/examples.py.
"""

import functools
import glob
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from data.config import DatasetConfig
from data.errors import ConfigError, DataError
from data.examples import Problem, describe

SUFFIXES = (".jsonl", ".json")
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What files and folders of a split are called, as in the `datasets` library."""

_BOM = b"\xef\xbb\xbf"
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class InputFile:
    path: Path
    bytes: int
    xxh3: str
    """Hash of the content (xxh3_128)."""


def find_files(config: DatasetConfig) -> list[Path]:
    """The files of the dataset's split, in a fixed order. Raises ConfigError when there are none."""
    kwargs = config.hf_kwargs
    if config.hf_name != "json":
        raise ConfigError(
            f"hf_name is {config.hf_name!r}, but only local JSONL is supported yet: write `hf_name: json` and name the "
            "files in hf_kwargs.data_dir or hf_kwargs.data_files"
        )
    if kwargs.name is not None:
        raise ConfigError(f"hf_kwargs.name is {kwargs.name!r}, but local JSONL has no subsets: leave it out")
    if kwargs.data_dir is not None and not Path(kwargs.data_dir).is_dir():
        wrong = "is a file: name it in hf_kwargs.data_files" if Path(kwargs.data_dir).exists() else "is not there"
        raise ConfigError(f"hf_kwargs.data_dir is {kwargs.data_dir!r}, but this folder {wrong}")
    if kwargs.data_files is not None:
        patterns = [kwargs.data_files] if isinstance(kwargs.data_files, str) else kwargs.data_files
        return _named_files(patterns, Path(kwargs.data_dir or ""))
    if kwargs.data_dir is None:
        raise ConfigError("hf_name is 'json', but neither hf_kwargs.data_dir nor hf_kwargs.data_files names any files")
    return _split_files(Path(kwargs.data_dir), config.split)


def _named_files(patterns: list[str], base: Path) -> list[Path]:
    """Files in the order of the patterns, sorted inside a pattern, each once."""
    files: dict[Path, None] = {}
    for pattern in patterns:
        whole = base / pattern
        matches = glob.glob(str(whole), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        found = [whole] if whole.exists() else [Path(name) for name in sorted(matches)]
        found = [path for path in found if path.is_file()]
        if not found:
            wrong = "it is a folder: name it in hf_kwargs.data_dir" if whole.is_dir() else "there is no such file"
            raise ConfigError(f"hf_kwargs.data_files has {str(whole)!r}, but {wrong}")
        files.update(dict.fromkeys(found))
    if not files:
        raise ConfigError("hf_kwargs.data_files is empty: name at least one file, or a folder in hf_kwargs.data_dir")
    return list(files)


def _split_files(folder: Path, split: str) -> list[Path]:
    """The folder's files whose name, or whose folder's, has the split's word; all of them when no file has any."""
    every = [path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES and path.is_file()]
    every = [path for path in every if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not every:
        raise ConfigError(f"hf_kwargs.data_dir is {str(folder)!r}, but there is no .jsonl or .json file in it")
    splits = {name: _of_split(every, folder, name) for name in dict.fromkeys((split, *SPLIT_WORDS))}
    if splits[split]:
        return splits[split]
    there = [name for name, files in splits.items() if files]
    if split == "train" and not there:
        return every
    names = ", ".join(path.name for path in every[:5]) + (", ..." if len(every) > 5 else "")
    hint = f"split is one of {', '.join(there)} here" if there else f"put the word {split} into a file's name"
    raise ConfigError(
        f"split is {split!r}, but no file in {str(folder)!r} is named so (there: {names}): {hint}, "
        "or name the files in hf_kwargs.data_files"
    )


def _of_split(files: list[Path], folder: Path, split: str) -> list[Path]:
    words = "|".join(re.escape(word) for word in SPLIT_WORDS.get(split, (split,)))
    word = re.compile(rf"(?:^|[-._ /0-9])(?:{words})(?:[-._ /0-9]|$)")
    return [path for path in files if word.search(path.relative_to(folder).as_posix())]


def hash_file(path: Path) -> InputFile:
    """Raises DataError when the file cannot be read. A file that has not changed since is not read again."""
    try:
        stat = path.stat()
        return _hash_file(path, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


@functools.cache
def _hash_file(path: Path, state: tuple[int, ...]) -> InputFile:
    digest, size = xxhash.xxh3_128(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
            size += len(block)
    return InputFile(path, size, digest.hexdigest())


def read_rows(
    files: Iterable[InputFile], progress: Callable[[int], object] = lambda n_bytes: None
) -> Iterator[tuple[str, Any]]:
    """`(place, row)` for each line that is not blank; a line that is no JSON gives a Problem for its row.

    Raises DataError when a file is not what was hashed: the rows would carry another's fingerprint.
    """
    for file in files:
        digest, n_rows = xxhash.xxh3_128(), 0
        with file.path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                digest.update(line)
                progress(len(line))
                content = line.removeprefix(_BOM).strip() if number == 1 else line.strip()
                if content:
                    n_rows += 1
                    yield f"{file.path}:{number}", parse_line(content, first=n_rows == 1)
        if digest.hexdigest() != file.xxh3:
            raise DataError(f"{file.path} was changed while it was being read: start again when it is complete")
        if not n_rows:
            yield str(file.path), Problem("empty file", "the file is empty: remove it, or put rows into it")


def parse_line(line: bytes, *, first: bool = False) -> Any:
    """The JSON value of the line, or the Problem with it."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        byte = line[error.start]
        return Problem("not UTF-8", f"is not UTF-8 (byte 0x{byte:02x} at {error.start}): save the file as UTF-8")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if first and text.startswith("["):
            return _array(text)
        why = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        return Problem("not JSON", f"is not JSON ({why}): {describe(text)}: write one JSON object a line")
    return _array(text) if first and isinstance(value, list) else value


def _array(text: str) -> Problem:
    return Problem(
        "a JSON array",
        f"begins a JSON array ({describe(text)}), but one JSON object a line is needed: "
        "`jq -c '.[]' FILE > FILE.jsonl` makes it so",
    )
