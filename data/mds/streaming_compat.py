"""Patches of Streaming's objects. Each says what it is for and has a probe: a Streaming that needs none is left alone.

All of them are for mosaicml-streaming 0.13.
"""

import tempfile
from functools import cache
from pathlib import Path
from typing import Any


def take_encoded_samples(writer: Any) -> None:
    """Makes MDSWriter.write take samples that are encoded already, as bytes.

    Streaming 0.13 encodes every sample itself, column by column. We encode rows faster, and with fewer copies of them
    in memory (data/preparation/rows.py). There is no upstream issue.
    """
    if _takes_encoded_samples(writer):
        return
    encode_sample = writer.encode_sample
    writer.encode_sample = lambda sample: sample if isinstance(sample, bytes) else encode_sample(sample)


def _takes_encoded_samples(writer: Any) -> bool:
    try:
        return writer.encode_sample(b"probe") == b"probe"
    except Exception:  # whatever it makes of bytes
        return False


def open_uploader(folder: Path, remote: str) -> Any:
    """A CloudUploader that sends files of the folder, which need not be there yet. Raises what Streaming raises.

    Streaming 0.13 makes the folder, which the preparation would then take for another's, and refuses one with files in
    it, which a resumed preparation has (mosaicml/streaming pull request 520, open). Any other folder will do.
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
