"""Patches of Streaming's objects. Each patch states its reason, and has a probe that determines whether the patch is
needed. If the patch is not needed, Streaming is unchanged.

All patches are for mosaicml-streaming 0.13.
"""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any


def take_encoded_samples(writer: Any) -> None:
    """Make MDSWriter.write accept samples that are already encoded as bytes.

    Streaming 0.13 always encodes samples itself, column by column. Our encoding is faster and makes fewer copies in
    memory (data/preparation/packing/rows.py). There is no upstream issue.
    """
    if _takes_encoded_samples(writer):
        return
    encode_sample = writer.encode_sample
    writer.encode_sample = lambda sample: sample if isinstance(sample, bytes) else encode_sample(sample)


def _takes_encoded_samples(writer: Any) -> bool:
    try:
        return writer.encode_sample(b"probe") == b"probe"
    except Exception:  # an error of any type means that bytes are not accepted
        return False


def open_uploader(folder: Path, remote: str) -> Any:
    """A CloudUploader that sends files from the folder, which may not exist yet. Raises the errors that Streaming
    raises.

    Streaming 0.13 creates the folder, and the preparation would then assume that the folder belongs to another program.
    Streaming also rejects a folder that contains files, as the folder of a resumed preparation does (mosaicml/streaming
    pull request 520, open). The uploader is therefore created for a temporary folder.
    """
    from streaming.base.storage.upload import CloudUploader

    if not _uploader_wants_an_empty_folder():
        return CloudUploader.get((str(folder), remote), keep_local=True)
    with tempfile.TemporaryDirectory() as empty:
        uploader = CloudUploader.get((empty, remote), keep_local=True)
    uploader.local = str(folder)
    return uploader


@cache
def _uploader_wants_an_empty_folder() -> bool:
    from streaming.base.storage.upload import CloudUploader

    with tempfile.TemporaryDirectory() as base:
        absent, full, remote = Path(base, "absent"), Path(base, "full"), str(Path(base, "remote"))
        full.mkdir()
        (full / "file").touch()
        try:
            for folder in (absent, full):
                CloudUploader.get((str(folder), remote), keep_local=True)
        except FileExistsError:
            return True
        return absent.exists()
