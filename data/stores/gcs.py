"""Buckets in Google Cloud Storage, accessed with Google's default credentials."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError
from data.stores.failures import status_of
from data.stores.stored import StoredObject

_MISSING = (
    "no credentials for Google Cloud Storage found: run `gcloud auth application-default login`, set "
    "GOOGLE_APPLICATION_CREDENTIALS to a key file, or run on a machine with a service account"
)
_TIMEOUT = (20, 60)
"""Time limits for a connection and for a response, in seconds."""
_CHUNK_BYTES = 64 * 2**20
"""Size of the parts in which a large file is sent. A part that fails is sent again."""


class GCSBucket:
    """A Bucket (see store.py) in Google Cloud Storage. Google's library retries each call for up to two minutes."""

    def __init__(self, name: str, *, writable: bool) -> None:
        """Raises ConfigError if there are no credentials and the bucket must be writable. Public buckets can be read
        without credentials."""
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
        from google.cloud.storage import Client
        from google.cloud.storage.retry import DEFAULT_RETRY

        try:
            # If STORAGE_EMULATOR_HOST is set, the client needs no credentials.
            self._client: Any = Client()
        except DefaultCredentialsError:
            if writable:
                unused = " (GCS_KEY and GCS_SECRET are only used for datasets)" if "GCS_KEY" in os.environ else ""
                raise ConfigError(_MISSING + unused) from None
            self._client = Client.create_anonymous_client()
        except (GoogleAuthError, OSError, ValueError) as error:
            raise ConfigError(f"Google Cloud Storage cannot be used: {error}") from None
        self.name = name
        self._bucket = self._client.bucket(name)
        self._options: dict[str, Any] = {"timeout": _TIMEOUT, "retry": DEFAULT_RETRY}

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        return ((each.name, each.bytes) for each in self.objects(prefix))

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        return map(_stored, self._client.list_blobs(self.name, prefix=prefix, **self._options))

    def about(self, key: str) -> StoredObject:
        blob = self._bucket.blob(key)
        blob.reload(**self._options)
        return _stored(blob)

    def read_range(self, key: str, start: int, stop: int, version: str) -> bytes | None:
        # The store's checksum is about the whole object. A raw download returns objects with the content encoding gzip
        # as they are stored.
        how = {"checksum": None, "raw_download": True, "if_generation_match": int(version)}
        try:
            return self._bucket.blob(key).download_as_bytes(start=start, end=stop - 1, **how, **self._options)
        except Exception as error:
            if status_of(error) == 412:
                return None
            raise

    def send(self, path: Path, key: str) -> None:
        blob = self._bucket.blob(key, chunk_size=_CHUNK_BYTES)
        blob.upload_from_filename(str(path), checksum="crc32c", **self._options)

    def fetch(self, key: str, path: Path) -> None:
        self._bucket.blob(key).download_to_filename(str(path), **self._options)

    def read(self, key: str) -> tuple[bytes, str]:
        blob = self._bucket.blob(key)
        blob.reload(**self._options)
        version = blob.generation  # a download overwrites this attribute
        return blob.download_as_bytes(if_generation_match=version, **self._options), str(version)

    def write(self, key: str, data: bytes, replaces: str | None) -> str | None:
        blob = self._bucket.blob(key)
        condition = {} if replaces is None else {"if_generation_match": int(replaces or 0)}
        try:
            blob.upload_from_string(data, checksum="crc32c", **condition, **self._options)
        except Exception as error:
            if condition and status_of(error) == 412:
                return None
            raise
        return str(blob.generation)

    def delete(self, key: str) -> None:
        try:
            self._bucket.blob(key).delete(**self._options)
        except Exception as error:
            if status_of(error) != 404:
                raise

    def abandon_uploads(self, prefix: str) -> None:
        """Nothing to do: Google deletes incomplete uploads itself."""


def _stored(blob: Any) -> StoredObject:
    # Only objects that were composed of others have no MD5 hash.
    digest = blob.md5_hash or f"crc32c:{blob.crc32c}"
    return StoredObject(name=blob.name, bytes=blob.size, version=str(blob.generation), digest=digest)
