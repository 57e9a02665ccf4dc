"""Find the files that a config refers to, local or in an object store: the files of a split in a folder, or files that
the config lists."""

import glob
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.base.errors import ConfigError, from_here, reason, setting
from data.base.problems import listed
from data.config.dataset import DatasetConfig
from data.config.splits import SplitPart, parse_split
from data.secrets.redaction import is_address
from data.sources.folders import (
    files_below,
    is_file_or_broken_link,
    is_saved,
    names_of_split,
    notice_unread_in,
    refuse_saved_below,
    saved_files,
    without_duplicates,
)
from data.sources.formats.names import (
    DATA_SUFFIXES,
    FORMATS,
    TEXT_SUFFIXES,
    format_of,
    is_metadata,
    named_format,
    suffix_of,
)
from data.sources.remote.listing import is_pattern, matching, object_at, objects_below
from data.sources.remote.objects import ObjectFile
from data.sources.remote.remote_file import InputPath


@dataclass(frozen=True)
class Part:
    """Files to read, in this order."""

    files: tuple[InputPath, ...]
    slice: SplitPart | None = None
    """The rows to read; None: all."""


def is_path(name: str) -> bool:
    """Whether hf_name refers to files, local or in an object store, as opposed to a hub dataset."""
    if is_address(name) or name.startswith((".", "/", "~")) or named_format(name) is not None:
        return True
    with _access_errors("hf_name"):  # a local folder takes precedence over a hub dataset, as in `datasets`
        return Path(name).exists()


def find(config: DatasetConfig) -> tuple[str, list[Part]]:
    """The format of the files, and the files and rows for each part of `split`. Raises ConfigError for missing files
    and for mixed formats."""
    name = str(config.hf_name)
    _refuse_hub_keys(config, name)
    wanted = parse_split(config.split or "train")
    parts = [Part(tuple(_split(config, name, part.name)), part if part.is_slice else None) for part in wanted]
    kinds: dict[str, InputPath] = {}
    for path in (path for part in parts for path in part.files):
        kinds.setdefault(name if name in FORMATS else _kind(path, name), path)
    if len(kinds) > 1:
        shown = " and ".join(repr(str(path)) for path in kinds.values())
        raise ConfigError(
            f"is {name!r}, but it contains files of different formats ({shown}): specify the files to read in "
            f"{setting('hf_kwargs.data_files')}",
            key="hf_name",
        )
    return next(iter(kinds)), parts


def find_text(config: DatasetConfig) -> list[Part]:
    """The text files in a fixed order. Raises ConfigError if there are no text files."""
    if config.split is not None:
        raise ConfigError(
            f"is {config.split!r}, but text files have no splits: specify only the files of this split in "
            f"{setting('text')}",
            key="split",
        )
    patterns = config.text or []
    with _access_errors("text"):
        return [Part(tuple(_named_files("text", [patterns] if isinstance(patterns, str) else patterns, Path())))]


def _kind(path: InputPath, name: str) -> str:
    return "arrow" if isinstance(path, Path) and is_saved(_expanded("hf_name", name)) else format_of(path)


def _split(config: DatasetConfig, name: str, split: str) -> list[InputPath]:
    """The files of one split."""
    if is_address(name):
        return _remote_split(config, name, split)
    if name in FORMATS:
        with _access_errors("hf_kwargs"):
            files = _of_kwargs(config, Path(), FORMATS[name], split)
        _check_format(name, files)
        return files
    path = _expanded("hf_name", name)
    with _access_errors("hf_name"):
        if path.is_dir() and is_saved(path):
            _refuse_files(config, "is a folder written by save_to_disk, which lists its own files")
            return list[InputPath](saved_files("hf_name", path, split))
        if path.is_dir():
            return _of_kwargs(config, path, DATA_SUFFIXES, split)
        if not path.is_file():
            raise ConfigError(f"is {name!r}, but no such file or folder exists{from_here(path)}", key="hf_name")
    _refuse_files(config, "is already a file")
    format_of(path)
    _check_split("hf_name", split)
    return [path]


def _remote_split(config: DatasetConfig, name: str, split: str) -> list[InputPath]:
    if named_format(name) is None and not is_pattern(name):
        return _of_kwargs(config, name, DATA_SUFFIXES, split)
    _refuse_files(config, "already specifies files")
    _check_split("hf_name", split)
    return list[InputPath](_remote_files("hf_name", name))


def _refuse_hub_keys(config: DatasetConfig, name: str) -> None:
    for key in ("name", "revision"):
        if (value := getattr(config.hf_kwargs, key)) is not None:
            what = "subsets" if key == "name" else "revisions"
            raise ConfigError(
                f"is {value!r}, but {setting('hf_name')} is {name!r}, and local files have no {what}: remove "
                f"{setting(f'hf_kwargs.{key}')}",
                key=f"hf_kwargs.{key}",
            )


def _refuse_files(config: DatasetConfig, why: str) -> None:
    if config.hf_kwargs.data_dir is not None or config.hf_kwargs.data_files is not None:
        raise ConfigError(
            f"specifies files, but {setting('hf_name')} {why} ({config.hf_name!r}): remove {setting('hf_kwargs')}",
            key="hf_kwargs",
        )


@contextmanager
def _access_errors(key: str) -> Iterator[None]:
    """Convert the OSError for a path that cannot be accessed into a ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"has {str(error.filename)!r}, which cannot be accessed ({reason(error)}): use another path, or request "
            "read permission for the folder of this path",
            key=key,
        ) from None


def _expanded(key: str, path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # the home folder of ~user is unknown
        raise ConfigError(f"has {path!r}, but {error}: write the path in full", key=key) from None


def _joined(key: str, base: Path | str, path: str) -> Path | str:
    """The path relative to `base`. A text is an address in an object store."""
    if is_address(path):
        return path
    return f"{base.rstrip('/')}/{path}" if isinstance(base, str) else base / _expanded(key, path)


def _named_files(key: str, patterns: list[str], base: Path | str) -> list[InputPath]:
    """The files that match the patterns, without duplicates, in the order of the patterns, and sorted within each
    pattern."""
    files: list[InputPath] = []
    for pattern in patterns:
        whole = _joined(key, base, pattern)
        if isinstance(whole, str):
            files += _remote_files(key, whole)
            continue
        if key == "text" and whole.is_dir():
            found = _texts_below(whole)
        else:
            found = [path for path in ([whole] if whole.exists() else _matches(whole)) if is_file_or_broken_link(path)]
        if not found:
            raise ConfigError(f"has {str(whole)!r}, but {_why_nothing(key, whole)}", key=key)
        files += found
    if not files:
        or_folder = ", or a folder" if key == "text" else f", or a folder in {setting('hf_kwargs.data_dir')}"
        raise ConfigError(f"is empty: specify at least one file{or_folder}", key=key)
    return without_duplicates(files)


def _remote_files(key: str, address: str) -> list[ObjectFile]:
    """The object with this address, or the objects that match the pattern, sorted. For the key `text`, an address can
    also be a folder, whose `.txt` files are read."""
    if is_pattern(address):
        return matching(key, address)
    if (found := object_at(key, address)) is not None:
        return [found]
    below = _remote_folder(key, address)
    there = listed([str(name) for name in below], 3)
    if key != "text":
        in_folder = f"it is a folder (it contains {there}): specify it in {setting('hf_kwargs.data_dir')}"
        raise ConfigError(f"has {address!r}, but {in_folder}", key=key)
    texts = [name for name in below if suffix_of(name) in TEXT_SUFFIXES]
    if not texts:
        nothing = f"this folder contains no .txt file (it contains {there}): specify other files with a pattern"
        raise ConfigError(f"has {address!r}, but {nothing}", key=key)
    notice_unread_in(key, address, list(below), None, texts)
    return [below[name] for name in texts]


def _remote_folder(key: str, address: str) -> dict[PurePosixPath, ObjectFile]:
    return {name: file for name, file in objects_below(key, address).items() if not is_metadata(name)}


def _matches(pattern: Path) -> list[Path]:
    """The files and folders that match the pattern. The longest prefix of the pattern that is an existing folder is not
    interpreted as a pattern."""
    folder = next((above for above in pattern.parents if above.is_dir()), Path())
    rest = str(pattern.relative_to(folder))
    return [folder / name for name in sorted(glob.glob(rest, root_dir=folder, recursive=True))]  # noqa: PTH207


def _texts_below(folder: Path) -> list[Path]:
    files = files_below(folder)
    found = [path for path in files if suffix_of(path) in TEXT_SUFFIXES]
    names = [path.relative_to(folder) for path in files]
    notice_unread_in("text", str(folder), names, None, [path.relative_to(folder) for path in found])
    return found


def _why_nothing(key: str, path: Path) -> str:
    if path.is_dir():
        if key == "text":
            return f"there is no .txt file in this folder{_others_below(path)}"
        return f"it is a folder: specify it in {setting('hf_kwargs.data_dir')}"
    if path.is_symlink():
        return f"it is a link to {str(path.readlink())!r}, which does not exist"
    bracket = (
        " (in a pattern, [...] matches one of the characters in the brackets; write [[] for a bracket)"
        if "[" in path.name
        else ""
    )
    return f"no such file exists{bracket or from_here(path)}"


def _others_below(folder: Path) -> str:
    """The hint for a folder without text files: the other files in the folder, and how to specify these files in the
    config."""
    found = Counter(path.suffix for path in files_below(folder) if path.suffix)
    if not found:
        return ""
    there = listed([f"{count:,} {suffix}" for suffix, count in found.most_common()], 3)
    most = found.most_common(1)[0][0]
    pattern = folder / "**" / f"*{most}"
    if most in DATA_SUFFIXES:
        name = next(name for name, suffixes in FORMATS.items() if most in suffixes)
        kwargs = setting("hf_kwargs", {"data_files": str(pattern)})
        return f" (it contains {there}): to read records, set {setting('hf_name', name)} and {kwargs}"
    return f" (it contains {there}): specify other files with a pattern, such as {setting('text', str(pattern))}"


def _of_kwargs(config: DatasetConfig, base: Path | str, suffixes: tuple[str, ...], split: str) -> list[InputPath]:
    kwargs = config.hf_kwargs
    key = "hf_kwargs.data_dir" if kwargs.data_dir is not None else "hf_name"
    folder = _joined(key, base, kwargs.data_dir) if kwargs.data_dir is not None else base
    if kwargs.data_dir is not None and isinstance(folder, Path) and not folder.is_dir():
        in_files = f"is a file: specify it in {setting('hf_kwargs.data_files')}"
        defect = in_files if folder.exists() else f"does not exist{from_here(folder)}"
        raise ConfigError(f"is {str(folder)!r}, which {defect}", key="hf_kwargs.data_dir")
    if kwargs.data_files is not None:
        return _data_files(config, folder, split)
    if kwargs.data_dir is None and config.hf_name in FORMATS:
        raise ConfigError(
            f"is {config.hf_name!r}, but neither {setting('hf_kwargs.data_dir')} nor "
            f"{setting('hf_kwargs.data_files')} specifies any files",
            key="hf_name",
        )
    return _split_files(key, folder, split, suffixes)


def _data_files(config: DatasetConfig, folder: Path | str, split: str) -> list[InputPath]:
    key, named = "hf_kwargs.data_files", config.hf_kwargs.data_files
    if isinstance(named, dict):
        if split not in named:
            raise ConfigError(
                f"is {split!r}, but the splits of {setting(key)} are {listed(list(named)) or 'none'}", key="split"
            )
        key, named = f"{key}.{split}", named[split]
    else:
        _check_split(key, split)
    return _named_files(key, [named] if isinstance(named, str) else named or [], folder)


def _check_split(key: str, split: str) -> None:
    """Raises ConfigError if `split` is not `train`. Files that are specified without a split belong to `train`, as in
    the `datasets` library."""
    if split != "train":
        instead = f"remove {setting('split')} and specify only the files of the split {split}"
        if key == "hf_kwargs.data_files":
            instead += f", or write {{train: files, {split}: files}}"
        raise ConfigError(
            f"is {split!r}, but {setting(key)} specifies files that all belong to the split train: {instead}",
            key="split",
        )


def _split_files(key: str, folder: Path | str, split: str, suffixes: tuple[str, ...]) -> list[InputPath]:
    if isinstance(folder, str):
        below = _remote_folder(key, folder)
        return [below[name] for name in names_of_split(key, folder, list(below), split, suffixes)]
    files = files_below(folder)
    refuse_saved_below(key, folder, files)
    names = names_of_split(key, str(folder), [path.relative_to(folder) for path in files], split, suffixes)
    return without_duplicates([folder / name for name in names])


def _check_format(name: str, files: list[InputPath]) -> None:
    for path in files:
        if suffix_of(path.name) in DATA_SUFFIXES and suffix_of(path.name) not in FORMATS[name]:
            raise ConfigError(
                f"has {str(path)!r}, but {setting('hf_name')} is {name!r}: set `{setting('hf_name', format_of(path))}`",
                key="hf_kwargs.data_files",
            )
