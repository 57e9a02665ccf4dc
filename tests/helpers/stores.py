"""An S3 server and a Google Cloud Storage server on localhost with one interface."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from tests.helpers import gcs_server, s3_server
from tests.helpers.store_faults import Fault


class Server:
    """A server with one bucket."""

    scheme: str
    faults: list[Fault]
    environment: Mapping[str, str]
    """Environment variables that make clients use the server."""

    def content(self) -> dict[str, bytes]:
        """Return the content of all objects in the bucket."""
        raise NotImplementedError

    def put(self, key: str, data: bytes) -> None:
        raise NotImplementedError

    def delete(self, key: str) -> None:
        raise NotImplementedError

    def written(self) -> list[str]:
        """Return the keys in the order in which they were written."""
        raise NotImplementedError

    def deleted(self) -> list[str]:
        raise NotImplementedError

    def bytes_sent(self) -> int:
        """Return the number of bytes of objects that were sent to clients."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        return f"{self.scheme}://bucket"


class _S3(Server):
    scheme = "s3"

    def __init__(self, storage: s3_server.S3) -> None:
        self.storage, self.faults, self.environment = storage, storage.faults, storage.environment
        storage.client.create_bucket(Bucket="bucket")

    def content(self) -> dict[str, bytes]:
        return {key: self._get(key) for key in self.storage.keys("bucket")}

    def _get(self, key: str) -> bytes:
        return self.storage.client.get_object(Bucket="bucket", Key=key)["Body"].read()

    def put(self, key: str, data: bytes) -> None:
        self.storage.client.put_object(Bucket="bucket", Key=key, Body=data)

    def delete(self, key: str) -> None:
        self.storage.client.delete_object(Bucket="bucket", Key=key)

    def bytes_sent(self) -> int:
        return self.storage.n_sent

    def written(self) -> list[str]:
        return self._keys("PUT")

    def deleted(self) -> list[str]:
        return self._keys("DELETE")

    def _keys(self, method: str) -> list[str]:
        return [path.removeprefix("/bucket/") for each, path in self.storage.requests if each == method]


class _GCS(Server):
    scheme = "gs"

    def __init__(self, storage: gcs_server.Storage) -> None:
        self.storage, self.faults = storage, storage.faults
        self.environment = {"STORAGE_EMULATOR_HOST": storage.endpoint}

    def content(self) -> dict[str, bytes]:
        return dict(self.storage.buckets["bucket"])

    def put(self, key: str, data: bytes) -> None:
        self.storage.buckets["bucket"][key] = data
        self.storage.generations["bucket", key] = self.storage.generations.get(("bucket", key), 0) + 1

    def delete(self, key: str) -> None:
        del self.storage.buckets["bucket"][key]

    def bytes_sent(self) -> int:
        return self.storage.n_sent

    def written(self) -> list[str]:
        return list(self.storage.uploaded)

    def deleted(self) -> list[str]:
        return list(self.storage.deleted)


@contextmanager
def serve(scheme: str) -> Iterator[Server]:
    """A context in which clients in this process use the server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data.sources.remote.objects._stores", {})  # clients of earlier servers
        yield from _serve(scheme)


def _serve(scheme: str) -> Iterator[Server]:
    if scheme == "s3":
        with s3_server.serve() as storage:
            yield _S3(storage)
        return
    with gcs_server.serve(gcs_server.Storage({"bucket": {}})) as storage, pytest.MonkeyPatch.context() as patch:
        server = _GCS(storage)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


def shorten_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits between attempts in this process, and turn off the retries of Google's library."""
    monkeypatch.setattr("data.stores.failures.WAITS", (0.01, 0.01))
    monkeypatch.setattr("google.cloud.storage.retry.DEFAULT_RETRY", None)
