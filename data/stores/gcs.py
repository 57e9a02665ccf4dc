"""Buckets of Google Cloud Storage, with Google's default credentials."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError
from data.stores.failures import status_of

_MISSING = (
    "no credentials for Google Cloud Storage were found: run `gcloud auth application-default login`, set "
    "GOOGLE_APPLICATION_CREDENTIALS to a key file, or run where a service account is attached"
)
_TIMEOUT = (20, 60)
"""Seconds for a connection and for an answer."""
_CHUNK_BYTES = 64 * 2**20
"""Of a large file: what is sent again after a failure."""


class GCSBucket:
    """See store.Bucket. Calls are retried by Google's library, for two minutes each."""

    def __init__(self, name: str, *, writable: bool) -> None:
        """Raises ConfigError without credentials, unless it is only read, which public buckets allow to anyone."""
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
        from google.cloud.storage import Client
        from google.cloud.storage.retry import DEFAULT_RETRY

        try:
            # With STORAGE_EMULATOR_HOST the client needs no credentials.
            self._client: Any = Client()
        except DefaultCredentialsError:
            if writable:
                unused = " (GCS_KEY and GCS_SECRET are used for data alone)" if "GCS_KEY" in os.environ else ""
                raise ConfigError(_MISSING + unused) from None
            self._client = Client.create_anonymous_client()
        except (GoogleAuthError, OSError, ValueError) as error:
            raise ConfigError(f"Google Cloud Storage cannot be used: {error}") from None
        self.name = name
        self._bucket = self._client.bucket(name)
        self._options: dict[str, Any] = {"timeout": _TIMEOUT, "retry": DEFAULT_RETRY}

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        return ((blob.name, blob.size) for blob in self._client.list_blobs(self.name, prefix=prefix, **self._options))

    def send(self, path: Path, key: str) -> None:
        blob = self._bucket.blob(key, chunk_size=_CHUNK_BYTES)
        blob.upload_from_filename(str(path), checksum="crc32c", **self._options)

    def fetch(self, key: str, path: Path) -> None:
        self._bucket.blob(key).download_to_filename(str(path), **self._options)

    def read(self, key: str) -> tuple[bytes, str]:
        blob = self._bucket.blob(key)
        blob.reload(**self._options)
        version = blob.generation  # which reading forgets
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
        """Google deletes what was not completed by itself."""
