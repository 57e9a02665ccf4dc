"""Objects in a store (s3://, gs://) as input files."""

import os
from dataclasses import dataclass

from data.base.errors import DataError, ReadError
from data.sources.remote.remote_file import RemoteFile
from data.stores.store import Store, StoreError, open_store
from data.stores.stored import StoredObject

_stores: dict[tuple[int, str], Store] = {}
"""Maps process and bucket to the open bucket, because a forked process must not use the connections of its parent."""


@dataclass(frozen=True)
class ObjectFile(RemoteFile):
    """One version of an object."""

    bucket: str
    """URL of the bucket."""
    key: str
    n_bytes: int
    version: str
    store_digest: str

    @classmethod
    def of(cls, bucket: str, found: StoredObject) -> "ObjectFile":
        return cls(bucket, found.name, found.bytes, found.version, found.digest)

    @property
    def digest(self) -> str:
        return self.store_digest

    @property
    def url(self) -> str:
        return f"{self.bucket}/{self.key}"

    def fetch(self, start: int, stop: int) -> bytes:
        try:
            content = bucket_at(self.bucket).read_range(self.key, start, stop, self.version)
        except StoreError as error:
            if error.absent:
                hint = "it was deleted after the start, so start again when the files are complete"
                raise DataError(f"{error}: {hint}") from None
            hint = "check the credentials" if error.denied else "start again when the store responds"
            raise ReadError(f"{error}: {hint}") from None
        if content is None:
            raise DataError(
                f"{self.url} changed while it was being read: start again when the upload of the files is complete"
            )
        return content


def bucket_at(url: str) -> Store:
    """The bucket, opened once per process. Raises ConfigError if its client cannot be used."""
    at = os.getpid(), url
    if at not in _stores:
        _stores[at] = open_store(url, writable=False)
    return _stores[at]
