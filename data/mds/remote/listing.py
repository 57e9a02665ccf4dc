"""List the files of a remote folder with their sizes, if the remote supports listing."""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from data.base.console import node_logger
from data.base.errors import DataError
from data.mds.remote import deadlines
from data.mds.remote.deadlines import in_time
from data.stores.failures import FetchError, fetch_error

_TIMEOUT = 20
"""Time limit for a response in seconds."""


@cache
def remote_has(remote: str, files: tuple[tuple[str, int], ...]) -> bool:
    """Check once per process that the files exist and have these sizes. Returns False if the remote cannot list sizes.

    Raises DataError for the first missing file or wrong size.
    """
    try:
        there = sizes(remote, [name for name, _ in files])
        why = "the remote does not list sizes"
    except FetchError as error:
        if not error.denied:  # a user who can read files may not have the permission to list files
            raise DataError(f"{remote} cannot be listed ({error}): start again when the remote responds") from None
        there, why = None, f"listing the remote failed: {error}"
    if there is None:
        node_logger.info(f"{remote}: only the first and the last shard are checked before training ({why})")
        return False
    missing = [name for name, _ in files if name not in there]
    if missing:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(
            f"{remote}/{missing[0]} is missing{others}, but is listed in index.json: upload all missing shards"
        )
    for name, n_bytes in files:
        if there[name] != n_bytes:
            raise DataError(
                f"{remote}/{name} has {there[name]} bytes, but it must have {n_bytes}: upload the shard again"
            )
    return True


def sizes(remote: str, names: Iterable[str]) -> dict[str, int] | None:
    """A mapping from the names of the existing files to their sizes in bytes; None if the remote cannot list sizes.

    Raises FetchError if the remote does not respond or denies access.
    """
    lister = LISTERS.get(urlsplit(remote).scheme)
    if lister is None:
        return None
    deadline = time.monotonic() + deadlines.QUIET
    try:
        return in_time(lambda: lister(remote, list(names)), lambda: time.monotonic() > deadline)
    except Exception as error:
        raise fetch_error(error) from None


def _list_folder(remote: str, names: list[str]) -> dict[str, int]:
    paths = {name: Path(remote, name) for name in names}
    return {name: path.stat().st_size for name, path in paths.items() if path.is_file()}


def _list_bucket(remote: str, names: list[str]) -> dict[str, int]:
    url, client, found = urlsplit(remote), _client_of(remote), {}
    for prefix in _prefixes(url.path, names):
        if hasattr(client, "list_blobs"):  # the client is from Google's library
            blobs = client.list_blobs(url.netloc, prefix=prefix, delimiter="/", timeout=_TIMEOUT)
            found.update((blob.name, blob.size) for blob in blobs)
        else:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=url.netloc, Prefix=prefix, Delimiter="/")
            found.update((item["Key"], item["Size"]) for page in pages for item in page.get("Contents", []))
    return _below(url.path, names, found)


def _client_of(remote: str) -> Any:
    """The client of Streaming's downloader, so that files are listed with the same credentials as for downloads.

    Streaming 0.13 can list files only with its uploaders, which return no sizes and need permission to access the
    bucket itself.
    """
    from streaming.base.storage import CloudDownloader

    downloader: Any = CloudDownloader.get(remote)
    if urlsplit(remote).scheme == "s3":
        downloader._create_s3_client(timeout=_TIMEOUT)
        return downloader._s3_client
    downloader._create_gcs_client()
    return downloader._gcs_client


def _prefixes(path: str, names: list[str]) -> set[str]:
    """The prefixes that contain the objects with these names."""
    base = PurePosixPath(path.strip("/"))
    return {f"{base / parent}/".removeprefix("./") for parent in {PurePosixPath(name).parent for name in names}}


def _below(path: str, names: list[str], bytes_of: Mapping[str, int]) -> dict[str, int]:
    base = PurePosixPath(path.strip("/"))
    keys = {name: (base / name).as_posix() for name in names}
    return {name: bytes_of[key] for name, key in keys.items() if key in bytes_of}


def _list_hf(remote: str, names: list[str]) -> dict[str, int]:
    from huggingface_hub import HfApi

    # The format is hf://datasets/OWNER/NAME/FOLDER, as in Streaming's downloader.
    _, _, _, owner, repo, *folder = remote.split("/")
    files = HfApi().dataset_info(f"{owner}/{repo}", files_metadata=True, timeout=deadlines.QUIET).siblings or []
    bytes_of = {file.rfilename: file.size for file in files if file.size is not None}
    paths = {name: "/".join((*folder, name)) for name in names}
    return {name: bytes_of[path] for name, path in paths.items() if path in bytes_of}


LISTERS: dict[str, Callable[[str, list[str]], dict[str, int]]] = {
    "": _list_folder,
    "s3": _list_bucket,
    "gs": _list_bucket,
    "hf": _list_hf,
}
