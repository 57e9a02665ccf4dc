"""Buckets in S3 and in compatible stores (S3_ENDPOINT_URL), accessed with boto3's default credentials."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError
from data.stores.failures import status_of
from data.stores.stored import StoredObject

_MISSING = (
    "no credentials for S3 found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run on a machine "
    "with an IAM role"
)
_CONNECT_SECONDS, _READ_SECONDS = 20, 60
_PART_BYTES = 64 * 2**20
_PARALLEL_PARTS = 4
"""Number of parts of a file that are sent in parallel. Several files are also sent in parallel."""


class S3Bucket:
    """A Bucket (see store.py) in S3. Calls are retried according to AWS_MAX_ATTEMPTS. For a large file, each part is
    retried separately."""

    def __init__(self, name: str, *, writable: bool) -> None:
        """Raises ConfigError if there are no credentials and the bucket must be writable. Public buckets can be read
        without credentials."""
        from boto3.s3.transfer import TransferConfig
        from boto3.session import Session
        from botocore import UNSIGNED
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        self.name = name
        try:
            session = Session()
            signed = session.get_credentials() is not None
            if writable and not signed:
                raise ConfigError(_MISSING)
            options: dict[str, Any] = {} if signed else {"signature_version": UNSIGNED}
            config = Config(
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_READ_SECONDS,
                retries={"mode": "standard"},
                max_pool_connections=64,
                **options,
            )
            self._client: Any = session.client("s3", config=config, endpoint_url=os.environ.get("S3_ENDPOINT_URL"))
        except BotoCoreError as error:  # for example, because the AWS profile is missing
            raise ConfigError(f"S3 cannot be used: {error}") from None
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"S3_ENDPOINT_URL cannot be used: {error}") from None
        self._transfer = TransferConfig(
            multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES, max_concurrency=_PARALLEL_PARTS
        )

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        return ((each.name, each.bytes) for each in self.objects(prefix))

    def objects(self, prefix: str) -> Iterator[StoredObject]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        items = (item for page in pages for item in page.get("Contents", []))
        return (_stored(item["Key"], item["Size"], item["ETag"]) for item in items)

    def about(self, key: str) -> StoredObject:
        answer = self._client.head_object(Bucket=self.name, Key=key)
        return _stored(key, answer["ContentLength"], answer["ETag"])

    def read_range(self, key: str, start: int, stop: int, version: str) -> bytes | None:
        wanted = {"Range": f"bytes={start}-{stop - 1}", "IfMatch": version}
        try:
            answer = self._client.get_object(Bucket=self.name, Key=key, **wanted)
        except Exception as error:
            # 416: the object has become shorter, in a store that does not support conditions.
            if status_of(error) in (412, 416):
                return None
            raise
        return answer["Body"].read() if answer["ETag"] == version else None

    def send(self, path: Path, key: str) -> None:
        from boto3.exceptions import S3UploadFailedError

        try:
            self._client.upload_file(str(path), self.name, key, Config=self._transfer)
        except S3UploadFailedError as error:
            raise error.__context__ or error from None  # the context is the error with the store's response

    def fetch(self, key: str, path: Path) -> None:
        self._client.download_file(self.name, key, str(path), Config=self._transfer)

    def read(self, key: str) -> tuple[bytes, str]:
        answer = self._client.get_object(Bucket=self.name, Key=key)
        return answer["Body"].read(), answer["ETag"]

    def write(self, key: str, data: bytes, replaces: str | None) -> str | None:
        condition = {} if replaces is None else {"IfMatch": replaces} if replaces else {"IfNoneMatch": "*"}
        try:
            return self._put(key, data, condition)
        except Exception as error:
            status = status_of(error)
            if condition and status in (404, 409, 412):
                return None
            if condition and status == 501:  # the store does not support conditional writes
                return self._put(key, data, {})
            raise

    def _put(self, key: str, data: bytes, condition: dict[str, str]) -> str:
        return self._client.put_object(Bucket=self.name, Key=key, Body=io.BytesIO(data), **condition)["ETag"]

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self.name, Key=key)

    def abandon_uploads(self, prefix: str) -> None:
        """Abort incomplete uploads of killed processes, because their parts cost money and are not shown in
        listings."""
        pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=self.name, Prefix=prefix)
        for upload in [upload for page in pages for upload in page.get("Uploads", [])]:
            self._client.abort_multipart_upload(Bucket=self.name, Key=upload["Key"], UploadId=upload["UploadId"])


def _stored(key: str, n_bytes: int, etag: str) -> StoredObject:
    return StoredObject(name=key, bytes=n_bytes, version=etag, digest=etag.strip('"'))
