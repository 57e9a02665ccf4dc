"""Files of a remote folder (a folder, s3://, gs://, hf://): brought here by Streaming's downloaders, or failed in time.

Streaming's own waits have no end: when a download dies, whoever waits for its shard waits for ever.
"""

import errno
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from data.base.errors import ConfigError, DataError, plain_os_errors
from data.base.locks import is_first
from data.hub.reach import why_offline

QUIET = 45
"""Seconds without a byte after which a download has failed; with the waits below it is under a minute."""
WAITS = (1, 2, 4)
"""Seconds between the tries."""
_POLL = 0.1

T = TypeVar("T")


class FetchError(Exception):
    """A file that could not be brought: the text is the cause."""

    def __init__(self, cause: str, *, absent: bool = False, denied: bool = False) -> None:
        super().__init__(cause)
        self.absent, self.denied = absent, denied
        """What the remote has said: that there is no such file, or that it is not for us."""


class Silence:
    """How long nothing has been written below a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._bytes, self._since = folder, -1, time.monotonic()

    def is_long(self) -> bool:
        n_bytes = sum(_bytes(Path(parent, name)) for parent, _, names in os.walk(self._folder) for name in names)
        if n_bytes != self._bytes:
            self._bytes, self._since = n_bytes, time.monotonic()
        return time.monotonic() - self._since > QUIET


def check_scheme(remote: str) -> None:
    """Raises ConfigError for a remote that Streaming cannot read, or not without a package that is not installed."""
    from streaming.base.storage import CloudDownloader
    from streaming.base.storage.download import DOWNLOADER_MAPPINGS

    try:
        CloudDownloader.get(remote)
    except ImportError as error:
        raise ConfigError(f"remote is {remote!r}, for which a package is missing ({error}): install it") from None
    except ValueError:
        known = ", ".join(f"{scheme}://" for scheme in DOWNLOADER_MAPPINGS if scheme)
        raise ConfigError(f"remote is {remote!r}, but it must be a folder or begin with one of {known}") from None


def check_network(remote: str) -> None:
    """Raises FetchError at once when a hub cannot be asked, for which its own library takes a minute of retries."""
    if urlsplit(remote).scheme == "hf":
        reason = why_offline()
        if reason is not None:
            raise FetchError(reason)


def fetch(
    url: str,
    folder: Path,
    find_defect: Callable[[Path], str | None] = lambda file: None,
    silence: Silence | None = None,
    waits: Sequence[float] | None = None,
) -> Path:
    """The file of that url, below the folder, whose silence others can watch, and may have watched already.

    `find_defect` says what is wrong with a file that has come. A failure is tried again, unless the remote has said no
    or the disk is full (OSError). Raises FetchError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    silence = silence or Silence(folder)
    for wait in (*(WAITS if waits is None else waits), None):
        target = Path(tempfile.mkdtemp(dir=folder)) / PurePosixPath(url).name
        try:
            _in_time(lambda target=target: _download(url, target), silence.is_long)
            defect = find_defect(target)
            if defect is None:
                return target
            failure = FetchError(defect)
        except Exception as error:
            _raise_if_full(error)
            failure = _fetch_error(error)
            if isinstance(error, TimeoutError) or not _is_worth_a_try(error):
                raise failure from None
        shutil.rmtree(target.parent, ignore_errors=True)
        if wait is None:
            raise failure
        time.sleep(wait)
    raise AssertionError


def plain_local_errors(folder: Path, what: str) -> AbstractContextManager[None]:
    """What the local file system refuses becomes an error with a way out."""
    return plain_os_errors(f"local is {str(folder)!r}, but it", "name another folder in local", needed_for=what)


@cache
def say_once(message: str) -> None:
    print(message, flush=True)


@cache
def remote_has(remote: str, files: tuple[tuple[str, int], ...]) -> bool:
    """Looked once a process: are the files there, each of its size? False when the remote cannot tell.

    Raises DataError for the first that is not.
    """
    try:
        there = sizes(remote, [name for name, _ in files])
        why = "it tells no sizes"
    except FetchError as error:
        if not error.denied:  # who may read the files may not have been allowed to list them
            raise DataError(f"{remote} cannot be looked at ({error}): start again when it answers") from None
        there, why = None, f"its list: {error}"
    if there is None:
        if is_first():
            print(f"{remote}: only the first and the last shard are looked at before training ({why})", flush=True)
        return False
    lost = [name for name, _ in files if name not in there]
    if lost:
        others = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        raise DataError(f"{remote}/{lost[0]} is not there{others}, but index.json lists it: upload it")
    for name, n_bytes in files:
        if there[name] != n_bytes:
            raise DataError(f"{remote}/{name} has {there[name]} bytes, but {n_bytes} were written: upload it again")
    return True


def sizes(remote: str, names: Iterable[str]) -> dict[str, int] | None:
    """Bytes of those of the remote's files that are there; None where it cannot tell without sending them.

    Raises FetchError when it does not answer, or not to us.
    """
    lister = LISTERS.get(urlsplit(remote).scheme)
    if lister is None:
        return None
    deadline = time.monotonic() + QUIET
    try:
        return _in_time(lambda: lister(remote, list(names)), lambda: time.monotonic() > deadline)
    except Exception as error:
        raise _fetch_error(error) from None


def _download(url: str, target: Path) -> None:
    from streaming.base.storage import CloudDownloader

    # A client of its own each time: one that was made before a fork would share its connections with other workers.
    downloader = CloudDownloader.get(url)
    try:
        downloader.download(url, str(target), QUIET)
    finally:
        downloader.clean_up()


def _in_time(work: Callable[[], T], given_up: Callable[[], bool]) -> T:
    """What work() returns or raises, or TimeoutError once given_up(): then its thread is left behind."""
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL)
        if thread.is_alive() and given_up():
            raise TimeoutError(f"nothing came for {QUIET} s")
    # On its way out, which join() does not wait for, a thread that used TLS holds a lock of OpenSSL: a process forked
    # at that moment would hang at its first connection.
    while Path(f"/proc/self/task/{thread.native_id}").exists():
        time.sleep(0.001)
    if errors:
        raise errors[0]
    return results[0]


def _list_folder(remote: str, names: list[str]) -> dict[str, int]:
    paths = {name: Path(remote, name) for name in names}
    return {name: path.stat().st_size for name, path in paths.items() if path.is_file()}


def _list_s3(remote: str, names: list[str]) -> dict[str, int]:
    return _list_with_boto(remote, names, endpoint_url=os.environ.get("S3_ENDPOINT_URL"))


def _list_gs(remote: str, names: list[str]) -> dict[str, int]:
    keys = [os.environ.get(name) for name in ("GCS_KEY", "GCS_SECRET")]
    if all(keys):  # Streaming then takes Google for an S3
        settings = dict(zip(("aws_access_key_id", "aws_secret_access_key"), keys, strict=True))
        return _list_with_boto(
            remote, names, endpoint_url="https://storage.googleapis.com", region_name="auto", **settings
        )
    from google.auth import default
    from google.cloud.storage import Client

    url, client, found = urlsplit(remote), Client(credentials=default()[0]), {}
    for prefix in _prefixes(url.path, names):
        listed = client.list_blobs(url.netloc, prefix=prefix, delimiter="/", timeout=20)
        found.update((blob.name, blob.size) for blob in listed)
    return _below(url.path, names, found)


def _list_with_boto(remote: str, names: list[str], **settings: Any) -> dict[str, int]:
    from boto3.session import Session
    from botocore.config import Config

    config = Config(connect_timeout=10, read_timeout=20, retries={"max_attempts": 2})
    url, client, found = urlsplit(remote), Session().client("s3", config=config, **settings), {}
    for prefix in _prefixes(url.path, names):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=url.netloc, Prefix=prefix, Delimiter="/")
        found.update((item["Key"], item["Size"]) for page in pages for item in page.get("Contents", []))
    return _below(url.path, names, found)


def _prefixes(path: str, names: list[str]) -> set[str]:
    """Of the objects that the names are among."""
    base = PurePosixPath(path.strip("/"))
    return {f"{base / parent}/".removeprefix("./") for parent in {PurePosixPath(name).parent for name in names}}


def _below(path: str, names: list[str], bytes_of: Mapping[str, int]) -> dict[str, int]:
    base = PurePosixPath(path.strip("/"))
    keys = {name: (base / name).as_posix() for name in names}
    return {name: bytes_of[key] for name, key in keys.items() if key in bytes_of}


def _list_hf(remote: str, names: list[str]) -> dict[str, int]:
    from huggingface_hub import HfApi

    # hf://datasets/OWNER/NAME/FOLDER, as Streaming's downloader reads it.
    _, _, _, owner, repo, *folder = remote.split("/")
    files = HfApi().dataset_info(f"{owner}/{repo}", files_metadata=True, timeout=QUIET).siblings or []
    bytes_of = {file.rfilename: file.size for file in files if file.size is not None}
    paths = {name: "/".join((*folder, name)) for name in names}
    return {name: bytes_of[path] for name, path in paths.items() if path in bytes_of}


LISTERS: dict[str, Callable[[str, list[str]], dict[str, int]]] = {
    "": _list_folder,
    "s3": _list_s3,
    "gs": _list_gs,
    "hf": _list_hf,
}


def _fetch_error(error: Exception) -> FetchError:
    status = _status(error)
    if status == 404:
        return FetchError("there is no such file", absent=True)
    if status in (401, 403):
        return FetchError("permission denied", denied=True)
    lines = str(error).strip().splitlines()
    return FetchError(f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__)


def _status(error: Exception) -> int | None:
    """What the remote answered, in HTTP's numbers: each library has it elsewhere."""
    # Not their subclasses: huggingface_hub has one that says that the network is down.
    if type(error) in (FileNotFoundError, NotADirectoryError):
        return 404
    if isinstance(error, PermissionError):
        return 403
    response: Any = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    status = getattr(response, "status_code", None) or getattr(error, "code", None)  # huggingface_hub, google
    return int(status) if isinstance(status, int) else None


def _is_worth_a_try(error: Exception) -> bool:
    status = _status(error)
    return status is None or status >= 500 or status in (408, 429)


def _raise_if_full(error: BaseException) -> None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise error
    if error.__cause__ is not None:
        _raise_if_full(error.__cause__)


def _bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # gone since it was listed
        return 0
