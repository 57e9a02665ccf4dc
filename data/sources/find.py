"""Which files a config means: those of a split in a folder, or those that are named."""

import glob
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.config import DatasetConfig
from data.errors import ConfigError

FORMATS = {"json": (".jsonl", ".json"), "csv": (".csv", ".tsv"), "parquet": (".parquet",)}
"""hf_name of local files, and what theirs end in."""
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What files and folders of a split are called, as in the `datasets` library."""


def is_path(name: str) -> bool:
    """Is this hf_name a file or folder here, and not a dataset of the hub?"""
    if name.startswith((".", "/", "~")) or Path(name).suffix in _SUFFIXES:
        return True
    return "/" in name and Path(name).exists()


def format_of(path: Path) -> str:
    """The key of FORMATS by the file's name. Raises ConfigError when it is none."""
    for name, suffixes in FORMATS.items():
        if path.suffix in suffixes:
            return name
    raise ConfigError(
        f"{str(path)!r} does not end in {_either(_SUFFIXES)}, so how to read it is not known: rename it, or write "
        f"`hf_name: {' | '.join(FORMATS)}` and name it in hf_kwargs.data_files"
    )


def find_files(config: DatasetConfig) -> list[Path]:
    """The files of the dataset's split, in a fixed order. Raises ConfigError when there are none."""
    name, kwargs = str(config.hf_name), config.hf_kwargs
    for key in ("name", "revision"):
        if getattr(kwargs, key) is not None:
            what = "subsets" if key == "name" else "revisions"
            raise ConfigError(
                f"hf_kwargs.{key} is {getattr(kwargs, key)!r}, but hf_name is {name!r}, and local files have no "
                f"{what}: leave it out"
            )
    if name in FORMATS:
        with _looked_at("hf_kwargs"):
            files = _of_kwargs(config, Path(), FORMATS[name])
        _check_format(name, files)
        return files
    path = Path(name).expanduser()
    with _looked_at("hf_name"):
        if path.is_dir():
            return _of_kwargs(config, path, _SUFFIXES)
        if not path.is_file():
            raise ConfigError(f"hf_name is {name!r}, but there is no such file or folder")
    if kwargs.data_dir is not None or kwargs.data_files is not None:
        raise ConfigError(f"hf_kwargs names files, but hf_name is one already ({name!r}): leave hf_kwargs out")
    format_of(path)
    _check_split(config, "hf_name")
    return [path]


def find_text(config: DatasetConfig) -> list[Path]:
    """The text files, in a fixed order. Raises ConfigError when there are none."""
    if config.split is not None:
        raise ConfigError(f"split is {config.split!r}, but text files have no splits: name the files of one in text")
    patterns = config.text or []
    with _looked_at("text"):
        return named_files("text", [patterns] if isinstance(patterns, str) else patterns, Path())


@contextmanager
def _looked_at(key: str) -> Iterator[None]:
    """Makes a ConfigError of a path that the system does not let us look at."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{key} names {str(error.filename)!r}, but it cannot be looked at ({error.strerror}): name another, or "
            "have its folder opened to you"
        ) from None


def named_files(key: str, patterns: list[str], base: Path) -> list[Path]:
    """Files in the order of the patterns, sorted inside a pattern, each once."""
    files: dict[Path, None] = {}
    for pattern in patterns:
        whole = base / Path(pattern).expanduser()
        matches = glob.glob(str(whole), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        found = [whole] if whole.exists() else [Path(name) for name in sorted(matches)]
        found = [path for path in found if path.is_file()]
        if not found:
            folder = "name its files, as in FOLDER/*.txt" if key == "text" else "name it in hf_kwargs.data_dir"
            wrong = f"it is a folder: {folder}" if whole.is_dir() else "there is no such file"
            raise ConfigError(f"{key} has {str(whole)!r}, but {wrong}")
        files.update(dict.fromkeys(found))
    if not files:
        or_folder = "" if key == "text" else ", or a folder in hf_kwargs.data_dir"
        raise ConfigError(f"{key} is empty: name at least one file{or_folder}")
    return list(files)


def _of_kwargs(config: DatasetConfig, base: Path, suffixes: tuple[str, ...]) -> list[Path]:
    kwargs = config.hf_kwargs
    folder = base / Path(kwargs.data_dir).expanduser() if kwargs.data_dir is not None else base
    if kwargs.data_dir is not None and not folder.is_dir():
        wrong = "is a file: name it in hf_kwargs.data_files" if folder.exists() else "is not there"
        raise ConfigError(f"hf_kwargs.data_dir is {str(folder)!r}, but this folder {wrong}")
    if kwargs.data_files is not None:
        patterns = [kwargs.data_files] if isinstance(kwargs.data_files, str) else kwargs.data_files
        _check_split(config, "hf_kwargs.data_files")
        return named_files("hf_kwargs.data_files", patterns, folder)
    if kwargs.data_dir is None and config.hf_name in FORMATS:
        raise ConfigError(
            f"hf_name is {config.hf_name!r}, but neither hf_kwargs.data_dir nor hf_kwargs.data_files names any files"
        )
    key = "hf_kwargs.data_dir" if kwargs.data_dir is not None else "hf_name"
    return _split_files(key, folder, config.split or "train", suffixes)


def _check_split(config: DatasetConfig, key: str) -> None:
    """Files that are named are all of `train`, as in the `datasets` library."""
    if config.split not in (None, "train"):
        raise ConfigError(
            f"split is {config.split!r}, but {key} names files, and all of them are read: leave split out, and name "
            "the files of that split"
        )


def _split_files(key: str, folder: Path, split: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The folder's files whose name, or whose folder's, has the split's word; all of them when no file has any."""
    every = [path for path in sorted(folder.rglob("*")) if path.suffix in suffixes and path.is_file()]
    every = [path for path in every if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    if not every:
        raise ConfigError(f"{key} is {str(folder)!r}, but there is no {_either(suffixes)} file in it")
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


def _check_format(name: str, files: list[Path]) -> None:
    for path in files:
        if path.suffix in _SUFFIXES and path.suffix not in FORMATS[name]:
            raise ConfigError(
                f"hf_kwargs.data_files has {str(path)!r}, but hf_name is {name!r}: write `hf_name: {format_of(path)}`"
            )


def _either(words: tuple[str, ...]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
