"""Determine from a file's name its format, its compression, and whether it contains data."""

from pathlib import PurePath

from data.base.errors import ConfigError, setting
from data.sources.remote.remote_file import InputPath

FORMATS = {"json": (".jsonl", ".json", ".ndjson"), "csv": (".csv", ".tsv"), "parquet": (".parquet",)}
"""Maps each hf_name for local files to the suffixes of these files, which may be in upper or lower case."""
TEXT_SUFFIXES = (".txt",)
"""Files in a folder are read as text files if they have one of these suffixes."""
COMPRESSED = (".gz", ".zst")
"""Suffixes of compressed files, which may follow the suffix of a text format (JSON, CSV, plain text)."""
DATA_SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)

# fmt: off
_OTHER_DATA = (
    ".arrow", ".feather", ".avro", ".orc", ".xls", ".xlsx", ".ods", ".pkl", ".pickle", ".npy", ".npz", ".h5", ".hdf5",
    ".msgpack", ".tfrecord", ".tfrecords", ".lance", ".db", ".sqlite", ".sqlite3", ".mds", ".geoparquet", ".gpq",
)
_OTHER_COMPRESSED = (
    ".bz2", ".xz", ".zip", ".lz4", ".lzma", ".br", ".z", ".7z", ".rar", ".tar", ".tgz", ".tbz2", ".txz", ".snappy",
    ".zstd", ".gzip",
)
# fmt: on
_NOTES = ("readme", "license", "licence", "notice", "changelog", "requirements", "authors", "citation", "copying")
_METADATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json")
"""Names of files that are often in data folders, but contain no rows. The `datasets` library ignores the same files."""


def suffix_of(name: str | PurePath) -> str:
    """The suffix in lower case without a compression suffix: `.jsonl` for `A.JSONL.gz`."""
    path = PurePath(name)
    suffix = path.suffix.lower()
    return PurePath(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def named_format(name: str | PurePath) -> str | None:
    """The key of FORMATS for the file's name; None for other formats and for unsupported compression."""
    path, suffix = PurePath(name), suffix_of(name)
    format = next((format for format, suffixes in FORMATS.items() if suffix in suffixes), None)
    # Compressed Parquet files are not supported, because Parquet has its own compression and is read from the end of
    # the file.
    return None if format == "parquet" and path.suffix.lower() in COMPRESSED else format


def format_of(path: InputPath) -> str:
    """The key of FORMATS for the file's name. Raises ConfigError if the format is unknown."""
    format = named_format(path.name)
    if format is None:
        raise ConfigError(
            f"{str(path)!r} does not end in {either(DATA_SUFFIXES)} (text formats also with {either(COMPRESSED)}), "
            f"so its format is unknown: rename it, or set {setting('hf_name')} to {either(tuple(FORMATS))} and "
            f"specify the file in {setting('hf_kwargs.data_files')}"
        )
    return format


def is_metadata(path: PurePath) -> bool:
    return path.name in _METADATA


def looks_like_data(path: PurePath) -> bool:
    """Whether a user may expect this file to be read as data. The format of the file may be unsupported."""
    if is_metadata(path) or (suffix_of(path) in TEXT_SUFFIXES and path.name.lower().startswith(_NOTES)):
        return False
    known = {*DATA_SUFFIXES, *TEXT_SUFFIXES, *_OTHER_DATA}
    return path.suffix.lower() in _OTHER_COMPRESSED or suffix_of(path) in known or path.suffix.lower() in COMPRESSED


def either(words: tuple[str, ...]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
