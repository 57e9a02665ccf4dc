"""A folder in an object store. Failed calls are retried, and the final error contains the name of the object."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

from data.base.errors import ConfigError
from data.stores.address import split_url
from data.stores.failures import FetchError, retried
from data.stores.gcs import GCSBucket
from data.stores.s3 import S3Bucket
from data.stores.stored import StoredObject

PARALLEL = 8
"""Number of files that are sent or fetched in parallel."""

T = TypeVar("T")


class Bucket(Protocol):
    """A bucket that is accessed with the library of its store. Methods raise the library's errors."""

    name: str

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """The key and the size in bytes of each object whose key begins with the prefix."""
        ...

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        """All objects whose key begins with the prefix."""
        ...

    def about(self, key: str) -> StoredObject: ...

    def read_range(self, key: str, start: int, stop: int, version: str) -> bytes | None:
        """The bytes from `start` to `stop - 1`, without decompression; None if `version` is not the object's current
        version."""
        ...

    def send(self, path: Path, key: str) -> None:
        """Upload the file. The store verifies a checksum of the content."""
        ...

    def fetch(self, key: str, path: Path) -> None: ...

    def read(self, key: str) -> tuple[bytes, str]:
        """The content and the version of a small object."""
        ...

    def write(self, key: str, data: bytes, replaces: str | None) -> str | None:
        """Write the object and return its new version. If `replaces` is given, the object is written only if `replaces`
        is its current version, or if `replaces` is empty and the object does not exist. If the object is not written,
        None is returned. Without `replaces`, and in stores that do not support conditional writes, the object is always
        written."""
        ...

    def delete(self, key: str) -> None:
        """Delete the object if it exists."""
        ...

    def abandon_uploads(self, prefix: str) -> None: ...


class StoreError(Exception):
    """A call to a store failed. The text contains the name of the object and the reason."""

    def __init__(self, text: str, *, absent: bool = False, denied: bool = False) -> None:
        super().__init__(text)
        self.absent, self.denied = absent, denied
        """Whether the object or the bucket does not exist, or access to it is denied."""


class Store:
    """A folder in a store. Names are relative to the folder's URL. Methods may raise StoreError, and OSError for local
    files."""

    def __init__(self, url: str, bucket: Bucket) -> None:
        self.url, self._bucket = url.rstrip("/"), bucket
        prefix = split_url(url)[2]
        self._prefix = f"{prefix}/" if prefix else ""

    def sizes(self, below: str = "") -> dict[str, int]:
        """A mapping from name to size in bytes, for all objects whose names begin with `below`."""
        keys = self._tried(below, "listed", lambda: list(self._bucket.sizes(self._prefix + below)))
        return {key.removeprefix(self._prefix): n_bytes for key, n_bytes in keys}

    def objects(self, below: str = "") -> list[StoredObject]:
        """All objects whose names begin with `below`, sorted by name."""
        found = self._tried(below, "listed", lambda: list(self._bucket.objects(self._prefix + below)))
        named = (replace(each, name=each.name.removeprefix(self._prefix)) for each in found)
        return sorted(named, key=lambda each: each.name)

    def about(self, name: str) -> StoredObject:
        """The object with this name. Raises StoreError if it does not exist."""
        return replace(self._tried(name, "read", lambda: self._bucket.about(self._prefix + name)), name=name)

    def read_range(self, name: str, start: int, stop: int, version: str) -> bytes | None:
        """See Bucket.read_range."""
        return self._tried(name, "read", lambda: self._range(self._prefix + name, start, stop, version))

    def send(self, files: Iterable[tuple[Path, str]]) -> None:
        """Upload files, given as pairs of a local path and the name of the object."""
        self._each(files, "written", lambda path, name: self._bucket.send(path, self._prefix + name))

    def send_folder(self, folder: Path, below: str, last: str) -> None:
        """Upload all files of a folder. The file named `last` is deleted from the store first and sent last, so that a
        reader that finds this file also finds all other files."""
        self.delete([f"{below}/{last}".lstrip("/")])
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        named = [(path, f"{below}/{path.relative_to(folder).as_posix()}".lstrip("/")) for path in paths]
        self.send(each for each in named if each[0] != folder / last)
        self.send(each for each in named if each[0] == folder / last)

    def fetch(self, files: Iterable[tuple[Path, str]]) -> None:
        """Download objects, given as pairs of a local path and the name of the object."""
        self._each(files, "read", lambda path, name: self._bucket.fetch(self._prefix + name, path))

    def read(self, name: str) -> tuple[bytes, str] | None:
        """The content and version of a small object; None if it does not exist."""
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
        """Delete the objects one after another."""
        for name in names:
            self._tried(name, "deleted", lambda name=name: self._bucket.delete(self._prefix + name))

    def abandon_uploads(self) -> None:
        """Delete incomplete uploads of killed processes. Errors are ignored, because listing such uploads needs a
        separate permission."""
        with suppress(StoreError):
            self._tried("", "listed", lambda: self._bucket.abandon_uploads(self._prefix))

    def _each(self, files: Iterable[tuple[Path, str]], done: str, call: Callable[[Path, str], None]) -> None:
        with ThreadPoolExecutor(PARALLEL) as threads:
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
        try:
            return retried(call)
        except FetchError as error:
            what = f"{self.url}/{name}" if name else self.url
            reason = "the bucket does not exist" if error.absent and done == "listed" else error
            text = f"{what} cannot be {done}: {reason}"
            raise StoreError(text, absent=error.absent, denied=error.denied) from None

    def _range(self, key: str, start: int, stop: int, version: str) -> bytes | None:
        content = self._bucket.read_range(key, start, stop, version)
        if content is not None and len(content) != stop - start:
            raise ConnectionError(f"received {len(content):,} of {stop - start:,} bytes")
        return content


_BUCKETS: dict[str, Callable[..., Bucket]] = {"s3": S3Bucket, "gs": GCSBucket}


def open_store(url: str, *, writable: bool = True) -> Store:
    """Open the folder at `url`, which must be a valid store URL. Raises ConfigError if required credentials are
    missing. No request is sent to the store."""
    scheme, bucket, _ = split_url(url)
    try:
        return Store(url, _BUCKETS[scheme](bucket, writable=writable))
    except ImportError as error:
        raise ConfigError(
            f"{scheme}:// requires a package that is not installed ({error}): install the package"
        ) from None
