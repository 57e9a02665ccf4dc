"""A finished MDS folder, copied to where others read it from."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.base.errors import ConfigError, DataError
from data.mds.remote.fetch import fetch
from data.mds.remote.listing import sizes
from data.mds.streaming_compat import open_uploader
from data.mds.writer import INDEX, MANIFEST, MadeFrom, file_of, read_json, refuse_other
from data.stores.failures import FetchError

UPLOADS = 8
"""Files that are sent at a time."""


class Remote:
    """A folder, or s3://bucket/prefix and the like: looked at before the work, and sent to after it."""

    def __init__(self, remote: str, folder: Path, made_from: MadeFrom) -> None:
        """Raises ConfigError when it cannot be written, or has another dataset in it."""
        self.remote, self.folder = remote.rstrip("/"), folder
        self.whole = False
        """Whether all of it is there already."""
        try:
            self._uploader = open_uploader(folder, self.remote)
        except Exception as error:  # whatever the cloud's library raises
            raise ConfigError(
                f"{remote!r} cannot be written ({_first_line(error)}): look at its name, and at the credentials"
            ) from None
        manifest = self._fetch(MANIFEST)
        index = self._fetch(INDEX)
        if manifest is not None:
            refuse_other(self.remote, manifest.get("made_from", {}), made_from)
            self.whole = index is not None
        elif index is not None:
            raise ConfigError(f"{remote!r} has an {INDEX}, but no {MANIFEST}, so it is not ours: name another")

    def send(self) -> None:
        """The manifest first, by which a half-sent folder is known as ours; the index last, which makes it whole.

        Shards that are there are not sent again. Raises DataError when some cannot be sent.
        """
        if self.whole:
            return
        files = [file_of(entry) for entry in read_json(self.folder / INDEX)["shards"]]
        try:
            self._uploader.upload_file(MANIFEST)
            there = sizes(self.remote, [file["basename"] for file in files]) or {}
            shards = [file["basename"] for file in files if there.get(file["basename"]) != file["bytes"]]
            with ThreadPoolExecutor(UPLOADS) as threads:
                sent = threads.map(self._uploader.upload_file, shards)
                for _ in tqdm(sent, total=len(shards), desc=f"Sending to {self.remote}", unit="shard", delay=2):
                    pass
            self._uploader.upload_file(INDEX)
        except Exception as error:
            raise DataError(
                f"not all of {self.folder} could be sent to {self.remote!r} ({_first_line(error)}): start again, and "
                "only the sending is repeated"
            ) from None

    def _fetch(self, name: str) -> dict[str, Any] | None:
        """A JSON file that is there."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                return read_json(fetch(f"{self.remote}/{name}", Path(folder)))
            except FetchError as error:
                if error.absent:
                    return None
                raise ConfigError(f"{self.remote!r} cannot be read ({error})") from None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"
