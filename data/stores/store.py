"""A folder in an object store: its objects by their names in it. Failures are retried, then named with their object."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Protocol, TypeVar

from data.base.errors import ConfigError
from data.stores.address import split_url
from data.stores.failures import fetch_error, is_worth_a_try, raise_if_full
from data.stores.gcs import GCSBucket
from data.stores.s3 import S3Bucket

WAITS = (1, 4)
"""Seconds between the tries; the clients' own tries come before."""
AT_A_TIME = 8
"""Files that are sent or fetched at a time."""

T = TypeVar("T")


class Bucket(Protocol):
    """One of a store's library. What it raises is that library's own."""

    name: str

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Key and bytes of each object whose key begins with the prefix."""
        ...

    def send(self, path: Path, key: str) -> None:
        """The store compares a checksum with what it gets."""
        ...

    def fetch(self, key: str, path: Path) -> None: ...

    def read(self, key: str) -> tuple[bytes, str]:
        """What is in a small object, and what tells this version of it from others."""
        ...

    def write(self, key: str, data: bytes, replaces: str | None) -> str | None:
        """Returns the new version; None when the object there is not the version `replaces` (empty: when there is
        one). A store that knows no such conditions writes, as all do where `replaces` is None."""
        ...

    def delete(self, key: str) -> None:
        """It need not be there."""
        ...

    def abandon_uploads(self, prefix: str) -> None: ...


class StoreError(Exception):
    """A store did not do what it was asked for. The text names the object and the reason."""

    def __init__(self, text: str, *, absent: bool = False) -> None:
        super().__init__(text)
        self.absent = absent
        """The object, or the bucket, is not there."""


class Store:
    """A folder. Names in it are relative to its URL. Every call may raise StoreError, and OSError for local files."""

    def __init__(self, url: str, bucket: Bucket) -> None:
        self.url, self._bucket = url.rstrip("/"), bucket
        prefix = split_url(url)[2]
        self._prefix = f"{prefix}/" if prefix else ""

    def sizes(self, below: str = "") -> dict[str, int]:
        """Bytes of all objects, by name; of those whose names begin with `below`."""
        keys = self._tried(below, "listed", lambda: list(self._bucket.sizes(self._prefix + below)))
        return {key.removeprefix(self._prefix): n_bytes for key, n_bytes in keys}

    def send(self, files: Iterable[tuple[Path, str]]) -> None:
        """Sends each file under its name."""
        self._each(files, "written", lambda path, name: self._bucket.send(path, self._prefix + name))

    def send_folder(self, folder: Path, below: str, last: str) -> None:
        """Sends all files of a folder. Who finds `last`, the name of one of them, finds the others too: it is deleted
        first and sent last."""
        self.delete([f"{below}/{last}".lstrip("/")])
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        named = [(path, f"{below}/{path.relative_to(folder).as_posix()}".lstrip("/")) for path in paths]
        self.send(each for each in named if each[0] != folder / last)
        self.send(each for each in named if each[0] == folder / last)

    def fetch(self, files: Iterable[tuple[Path, str]]) -> None:
        """Writes what is under each name to its file."""
        self._each(files, "read", lambda path, name: self._bucket.fetch(self._prefix + name, path))

    def read(self, name: str) -> tuple[bytes, str] | None:
        """What is in a small object, and its version; None where there is none."""
        try:
            return self._tried(name, "read", lambda: self._bucket.read(self._prefix + name))
        except StoreError as error:
            if error.absent:
                return None
            raise

    def write(self, name: str, data: bytes, *, replaces: str | None = None) -> str | None:
        """See Bucket.write."""
        return self._tried(name, "written", lambda: self._bucket.write(self._prefix + name, data, replaces))

    def delete(self, names: Iterable[str]) -> None:
        """One after the other."""
        for name in names:
            self._tried(name, "deleted", lambda name=name: self._bucket.delete(self._prefix + name))

    def abandon_uploads(self) -> None:
        """Deletes what is left of uploads that were killed. Who may write is not always allowed to list these."""
        with suppress(StoreError):
            self._tried("", "listed", lambda: self._bucket.abandon_uploads(self._prefix))

    def _each(self, files: Iterable[tuple[Path, str]], done: str, call: Callable[[Path, str], None]) -> None:
        with ThreadPoolExecutor(AT_A_TIME) as threads:
            work = [
                threads.submit(self._tried, name, done, lambda path=path, name=name: call(path, name))
                for path, name in files
            ]
            try:
                for each in work:
                    each.result()
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _tried(self, name: str, done: str, call: Callable[[], T]) -> T:
        for wait in (*WAITS, None):
            try:
                return call()
            except Exception as error:
                raise_if_full(error)
                if isinstance(error, OSError) and error.filename is not None:
                    raise  # of a file on this machine
                if wait is None or not is_worth_a_try(error):
                    failure = fetch_error(error)
                    what = f"{self.url}/{name}" if name else self.url
                    reason = "there is no such bucket" if failure.absent and done == "listed" else failure
                    raise StoreError(f"{what} cannot be {done}: {reason}", absent=failure.absent) from None
            time.sleep(wait)
        raise AssertionError


_BUCKETS: dict[str, Callable[..., Bucket]] = {"s3": S3Bucket, "gs": GCSBucket}


def open_store(url: str, *, writable: bool = True) -> Store:
    """The folder of a URL without `url_defect`. Raises ConfigError without credentials; asks nothing of the store."""
    scheme, bucket, _ = split_url(url)
    try:
        return Store(url, _BUCKETS[scheme](bucket, writable=writable))
    except ImportError as error:
        raise ConfigError(f"a package is missing for {scheme}:// ({error}): install it") from None
