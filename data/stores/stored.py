"""The description of an object in a store."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    name: str
    bytes: int
    version: str
    """Changes whenever the object is written: the ETag in S3, the generation in Google Cloud Storage."""
    digest: str
    """A hash of the content that the store computed: the ETag in S3, the MD5 hash or CRC-32C checksum in Google Cloud
    Storage. In S3, equal contents that were uploaded in different parts have different ETags."""
