"""What the name of a data file says: how it is read, how it is compressed, and whether it is data at all."""

from pathlib import Path, PurePath

from data.base.errors import ConfigError, setting

FORMATS = {"json": (".jsonl", ".json", ".ndjson"), "csv": (".csv", ".tsv"), "parquet": (".parquet",)}
"""hf_name of local files, and what theirs end in, in any case of letters."""
TEXT_SUFFIXES = (".txt",)
"""What text files in a folder end in."""
COMPRESSED = (".gz", ".zst")
"""What may follow the suffix of a file of text (JSON, CSV, plain text)."""
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
"""Files beside data that hold no rows, as the `datasets` library knows them."""


def suffix_of(name: str | PurePath) -> str:
    """The suffix in lower case, without that of a compression: `.jsonl` of `A.JSONL.gz`."""
    path = PurePath(name)
    suffix = path.suffix.lower()
    return PurePath(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def named_format(name: str | PurePath) -> str | None:
    """The key of FORMATS by the file's name; None when it is none of them, or compressed in a way that is not read."""
    path, suffix = PurePath(name), suffix_of(name)
    format = next((format for format, suffixes in FORMATS.items() if suffix in suffixes), None)
    # Parquet compresses its own pages, and is read from its end: a compressed file of it is none.
    return None if format == "parquet" and path.suffix.lower() in COMPRESSED else format


def format_of(path: Path) -> str:
    """The key of FORMATS by the file's name. Raises ConfigError when it is none."""
    format = named_format(path)
    if format is None:
        raise ConfigError(
            f"{str(path)!r} does not end in {either(DATA_SUFFIXES)} (or such a name of text and {either(COMPRESSED)}), "
            f"so how to read it is not known: rename it, or write {either(tuple(FORMATS))} in {setting('hf_name')} and "
            f"name it in {setting('hf_kwargs.data_files')}"
        )
    return format


def is_metadata(path: PurePath) -> bool:
    return path.name in _METADATA


def looks_like_data(path: PurePath) -> bool:
    """Would a user take it for data, whether it can be read or not?"""
    if is_metadata(path) or (suffix_of(path) in TEXT_SUFFIXES and path.name.lower().startswith(_NOTES)):
        return False
    known = {*DATA_SUFFIXES, *TEXT_SUFFIXES, *_OTHER_DATA}
    return path.suffix.lower() in _OTHER_COMPRESSED or suffix_of(path) in known or path.suffix.lower() in COMPRESSED


def either(words: tuple[str, ...]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
