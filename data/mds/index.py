"""Find or download the index.json of an MDS folder, and validate it before Streaming's readers use it. Streaming does
not validate the index.

Without validation, a basename could point to a file outside the folder, which would be read or evicted; the encoding
`pkl` could run code; and a wrong sample count would only be noticed as invalid data in the middle of a run.
"""

import functools
import json
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data.base.console import notice
from data.base.errors import ConfigError, DataError, from_here, setting
from data.base.paths import path_defect
from data.base.problems import listed
from data.mds.remote.fetch import WAITS, check_network, fetch
from data.mds.writer import INDEX, MANIFEST, PLAN, done_slices, read_json
from data.secrets.redaction import redacted
from data.stores.failures import FetchError

_SHARD_KEYS = {
    "column_encodings",
    "column_names",
    "column_sizes",
    "compression",
    "format",
    "hashes",
    "raw_data",
    "samples",
    "size_limit",
    "version",
    "zip_data",
}
_MAX_BYTES = 2**32 - 1
"""Maximum size of a shard in bytes. The offsets in a shard are uint32."""


def need_index(folder: Path, key: str, value: str, split: str | None) -> None:
    """Raises ConfigError if the folder has no index. The message lists the subfolders (splits) that have an index, or
    reports how many slices of an unfinished preparation are done."""
    if (folder / INDEX).exists():
        return
    if (folder / PLAN).exists():
        raise ConfigError(f"is {value!r}, but {_unfinished(folder)}", key=key)
    base = folder.parent if split else folder
    splits = sorted({each.relative_to(base).parts[0] for name in (INDEX, PLAN) for each in base.glob(f"*/{name}")})
    where = f"split {split!r} has" if split else "the folder has"
    if not base.is_dir() and not folder.is_dir():
        raise ConfigError(f"is {value!r}, but no such folder exists{from_here(value)}", key=key)
    hint = (
        f"set {setting('split')} to {' or '.join(splits)}"
        if splits
        else f"check that {str(folder)!r} is the right folder"
    )
    raise ConfigError(f"is {value!r}, but {where} no {INDEX}: {hint}", key=key)


def _unfinished(folder: Path) -> str:
    """Why a folder with a plan, but without an index, cannot be used. The order of rows depends on the sizes of all
    shards, so a run cannot start earlier."""
    try:
        n_slices = len(read_json(folder / PLAN)["sizes"])
        n_done = sum(number < n_slices for number in done_slices(folder))
        done = f"{n_done:,} of {n_slices:,} slices are done"
    except (DataError, OSError, KeyError, TypeError):  # the preparation is being merged or has just started
        done = "the number of finished slices is unknown"
    return (
        f"{str(folder)!r} is not completely prepared ({done}): wait until its preparation ends; if it was interrupted, "
        "repeat the command that prepares the folder, with the same arguments (after all jobs with --part I/N: with "
        "--merge instead)"
    )


def fetch_index(folder: Path, remote: str, value: str, split: str | None) -> None:
    """Download index.json, and manifest.json if the remote has one, into the folder. `value` is the config's remote."""
    index = folder / INDEX
    if index.exists() and not os.access(folder, os.W_OK):
        return
    (folder / ".downloads").mkdir(parents=True, exist_ok=True)
    downloads = Path(tempfile.mkdtemp(dir=folder / ".downloads"))
    try:
        check_network(remote)
        got = fetch(f"{remote}/{INDEX}", downloads, waits=WAITS[:1])
        if index.exists() and index.read_bytes() != got.read_bytes():
            raise DataError(
                f"{folder} was not downloaded from {remote}, because the two {INDEX} files differ: delete the folder "
                f"{folder}, or set local to another folder"
            )
        if not (folder / MANIFEST).exists():
            _fetch_manifest(folder, remote, downloads)
        got.rename(index)
    except FetchError as error:
        if index.exists():
            notice(f"{remote} cannot be reached ({error}): using the files in {folder}", logging.WARNING)
            return
        if error.absent and "://" not in remote:
            need_index(Path(remote), "remote", value, split)
        hint = "check the path and the split" if error.absent else "check the name of the remote and the credentials"
        text = f"is {value!r}, but {remote}/{INDEX} cannot be read: {error}: {hint}"
        raise ConfigError(text, key="remote") from None
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def _fetch_manifest(folder: Path, remote: str, downloads: Path) -> None:
    try:
        fetch(f"{remote}/{MANIFEST}", downloads, waits=WAITS[:1]).rename(folder / MANIFEST)
    except FetchError as error:
        # For a missing file, a bucket that does not permit listing returns "permission denied".
        if not (error.absent or error.denied):
            raise


@dataclass(frozen=True)
class Index:
    """The content of an index.json."""

    shards: list[Any]
    """Streaming's reader for each shard, without the path of the folder. Empty shards are left out."""
    columns: dict[str, str]
    """Maps the name of each column that is the same in all shards to its encoding."""
    notes: list[str]
    """Messages for the user, which can be appended to the name of the folder."""


def parse_index(content: bytes, forms: Iterable[Sequence[str]]) -> Index:
    """Validate and parse an index. `forms` are the sets of columns that identify a format of samples. Raises DataError
    for the first defect. The message of the error can be appended to the name of the file.

    For a valid index, the format, the version and all encodings are supported; all shards have the same subset of the
    columns in `forms`, and at least one column in common; each file name is unique and refers to a file in the folder;
    and the sample counts are possible for the file sizes.
    """
    try:
        index = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not JSON ({error})") from None
    _need(isinstance(index, dict), "is not a JSON object")
    _need(index.get("version") == 2, f"has version {index.get('version')!r}, but only version 2 is supported")
    shards = index.get("shards")
    _need(isinstance(shards, list), "has no list of shards")
    _need(bool(shards), "lists no shards, so there are no samples")
    readers = {number: _parse_shard(shard, f"shards[{number}]") for number, shard in enumerate(shards)}
    _check_names_differ(list(readers.values()))
    # MDSWriter writes an empty first shard if the first sample is larger than its size_limit.
    full = {number: reader for number, reader in readers.items() if reader.samples}
    _need(bool(full), f"lists {len(shards)} shards, all of which are empty, so there are no samples")
    columns, in_some = _common_columns(full, {name for form in forms for name in form})
    notes = []
    if empty := len(shards) - len(full):
        notes.append(f"skipping {empty} of {len(shards)} shards, because they contain no samples")
    if in_some:
        counts = listed(f"{name} (in {count} of {len(full)})" for name, count in in_some.items())
        notes.append(f"some shards have columns that other shards do not have: {counts}")
    return Index(list(full.values()), columns, notes)


def _common_columns(readers: Mapping[int, Any], needed: Collection[str]) -> tuple[dict[str, str], Counter[str]]:
    """The columns that all shards have, with their encodings, and for each other column the number of shards that have
    it.

    Raises DataError if a required column is missing in some shards or has different encodings, or if the shards have no
    column in common.
    """
    number, reader = next(iter(readers.items()))
    first = columns_of(reader)
    common = dict(first)
    n_shards: Counter[str] = Counter()
    for other, reader in readers.items():
        columns = columns_of(reader)
        n_shards.update(columns.keys())
        if columns == first:
            continue
        differ = sorted(name for name, _ in first.items() ^ columns.items() if name in needed)
        common = dict(common.items() & columns.items())
        if differ or not common:
            names = listed(f"{name} {encoding}" for name, encoding in columns.items())
            raise DataError(
                f"has different columns in shards[{other}] ({names}) and in shards[{number}], but "
                f"{f'column {differ[0]}' if differ else 'at least one column'} must be the same in all shards"
            )
    in_some = Counter({name: count for name, count in n_shards.items() if count < len(readers)})
    return {name: first[name] for name in first if name in common}, in_some


def columns_of(reader: Any) -> dict[str, str]:
    return dict(zip(reader.column_names, reader.column_encodings, strict=True))


def _parse_shard(shard: Any, place: str) -> Any:
    from streaming.base.format.base.reader import FileInfo
    from streaming.base.format.mds import MDSReader

    _check_keys(shard, place)
    _check_columns(shard, place)
    _check_compression(shard, place)
    _check_file(shard["raw_data"], f"{place}.raw_data")
    if shard["compression"] is not None:
        _check_file(shard["zip_data"], f"{place}.zip_data")
    _check_counts(shard, place)
    # from_json is not used because its deep copies take seconds for an index with many shards.
    return MDSReader(
        dirname="",
        split=None,
        column_encodings=shard["column_encodings"],
        column_names=shard["column_names"],
        column_sizes=shard["column_sizes"],
        compression=shard["compression"],
        hashes=[],
        raw_data=FileInfo(**shard["raw_data"]),
        samples=shard["samples"],
        size_limit=None,
        zip_data=FileInfo(**shard["zip_data"]) if shard["compression"] else None,
    )


def _check_keys(shard: Any, place: str) -> None:
    _need(isinstance(shard, dict), f"has {place}, which is not an object")
    if shard.get("format") != "mds" and "format" in shard:
        raise DataError(f"has {place}.format {shard['format']!r}, but only mds is supported")
    for key in sorted(_SHARD_KEYS ^ shard.keys()):
        raise DataError(f"has {place} " + (f"without {key}" if key in _SHARD_KEYS else f"with the unknown key {key}"))
    _need(shard["version"] == 2, f"has {place}.version {shard['version']!r}, but only version 2 is supported")


def _check_columns(shard: Mapping[str, Any], place: str) -> None:
    names, encodings, column_sizes = (shard[f"column_{key}"] for key in ("names", "encodings", "sizes"))
    for key, value in (("names", names), ("encodings", encodings)):
        _need(_is_texts(value), f"has {place}.column_{key} {_short(value)}, but it must be a list of strings")
    _need(isinstance(column_sizes, list), f"has {place}.column_sizes {_short(column_sizes)}, but it must be a list")
    if not len(names) == len(encodings) == len(column_sizes) > 0:
        raise DataError(
            f"has {place} with {len(names)} column_names, {len(encodings)} column_encodings and "
            f"{len(column_sizes)} column_sizes: the numbers must be equal and at least 1"
        )
    _need(len(set(names)) == len(names), f"has {place}.column_names {_short(names)}, which contains duplicates")
    for name, encoding, size in zip(names, encodings, column_sizes, strict=True):
        _check_encoding(f"{place}, column {_short(name)}", encoding, size)


def _check_compression(shard: Mapping[str, Any], place: str) -> None:
    from streaming.base.compression import get_compressions, is_compression

    compression = shard["compression"]
    if compression is not None and not (isinstance(compression, str) and is_compression(compression)):
        known = ", ".join(sorted(name for name in get_compressions() if ":" not in name))
        raise DataError(f"has {place}.compression {_short(compression)}, but it must be one of {known}")
    if (shard["zip_data"] is None) != (compression is None):
        raise DataError(f"has {place} with compression {compression!r}, but zip_data {_short(shard['zip_data'])}")


def _check_counts(shard: Mapping[str, Any], place: str) -> None:
    samples, n_bytes = shard["samples"], shard["raw_data"]["bytes"]
    _need(_is_count(samples, 0), f"has {place}.samples {_short(samples)}, but it must be an integer of at least 0")
    # Minimum size: the sample count, the offsets, and at least one byte per sample.
    least = 4 * (samples + 2) + samples
    if samples == 0 and n_bytes != (n_empty := _bytes_without_samples(shard)):
        raise DataError(f"has {place}.samples 0, but the shard has {n_bytes} bytes instead of {n_empty}")
    if least > n_bytes:
        raise DataError(
            f"has {place}.samples {samples}, which require at least {least} bytes, but the shard has {n_bytes} bytes"
        )
    _need(n_bytes <= _MAX_BYTES, f"has {place}.raw_data.bytes {n_bytes}, but the maximum is {_MAX_BYTES}")


def _bytes_without_samples(shard: Mapping[str, Any]) -> int:
    """Size of an empty shard written by MDSWriter. Such a shard contains the sample count, one offset, and a header in
    JSON."""
    header = {key: value for key, value in shard.items() if key not in ("raw_data", "samples", "zip_data")}
    return 8 + len(json.dumps(header, sort_keys=True))


def _check_encoding(place: str, encoding: str, size: Any) -> None:
    if "pkl" in encoding:
        raise DataError(
            f"has the encoding {encoding} ({place}), which can run code hidden in the data: write the column as "
            "json, str or ndarray"
        )
    try:
        right = _encoded_size(encoding)
    except Exception:  # KeyError, ValueError, AssertionError or AttributeError, depending on the name
        raise DataError(f"has the encoding {_short(encoding)} ({place}), which is unknown") from None
    if size != right or isinstance(size, bool):
        raise DataError(f"has the size {_short(size)} ({place}), but the size of {encoding} is {right}")


@functools.cache
def _encoded_size(encoding: str) -> int | None:
    from streaming.base.format.mds.encodings import get_mds_encoded_size

    return get_mds_encoded_size(encoding)


def _check_file(info: Any, place: str) -> None:
    from streaming.base.hashing import is_hash

    if not isinstance(info, dict) or info.keys() != {"basename", "bytes", "hashes"}:
        raise DataError(f"has {place} {_short(info)}, but it must have basename, bytes and hashes")
    name, n_bytes, hashes = info["basename"], info["bytes"], info["hashes"]
    if not _stays_inside(name):
        raise DataError(f"has {place}.basename {_short(name)}, but it must be the name of a file inside the folder")
    _need(_is_count(n_bytes), f"has {place}.bytes {_short(n_bytes)}, but it must be an integer of at least 1")
    _need(isinstance(hashes, dict), f"has {place}.hashes {_short(hashes)}, but it must be an object")
    for algorithm, digest in hashes.items():
        _need(is_hash(algorithm), f"has {place}.hashes with {_short(algorithm)}, which is not a known algorithm")
        _need(isinstance(digest, str), f"has {place}.hashes.{algorithm} {_short(digest)}, but it must be a string")


def _stays_inside(name: Any) -> bool:
    """Whether the name is valid for a shard's file in the folder or a subfolder (`merge_index` writes names with
    subfolders)."""
    if not isinstance(name, str) or not name or not name.isprintable() or "\\" in name or ":" in name:
        return False
    if path_defect(name) is not None:
        return False
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith((".", "/")) for part in parts)
    return "/".join(parts) == name and not hidden and name not in (INDEX, MANIFEST)


def _check_names_differ(readers: Sequence[Any]) -> None:
    seen: set[str] = set()
    for reader in readers:
        for info in (info for pair in reader.file_pairs for info in pair if info is not None):
            _need(info.basename not in seen, f"lists the file {info.basename} twice")
            seen.add(info.basename)


def _need(holds: bool, message: str) -> None:
    if not holds:
        raise DataError(message)


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _short(value: Any) -> str:
    text = redacted(repr(dict(value) if isinstance(value, Mapping) else value))
    return text if len(text) <= 60 else text[:60] + "..."
