"""Upload a finished MDS folder to a remote folder."""

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
"""Maximum number of files that are sent in parallel."""


class Remote:
    """A remote folder, such as s3://bucket/prefix. It is checked before the preparation of the rows starts, and written
    after the preparation is complete."""

    def __init__(self, remote: str, folder: Path, made_from: MadeFrom) -> None:
        """Raises ConfigError if the remote is not writable or contains another dataset."""
        self.remote, self.folder = remote.rstrip("/"), folder
        self.whole = False
        """Whether the remote already has the complete folder."""
        try:
            self._uploader = open_uploader(folder, self.remote)
        except Exception as error:  # each cloud library raises its own errors
            raise ConfigError(
                f"{remote!r} cannot be written ({_first_line(error)}): check the name of the remote and the credentials"
            ) from None
        manifest = self._fetch(MANIFEST)
        index = self._fetch(INDEX)
        if manifest is not None:
            refuse_other(self.remote, manifest.get("made_from", {}), made_from)
            self.whole = index is not None
        elif index is not None:
            raise ConfigError(
                f"{remote!r} has an {INDEX}, but no {MANIFEST}, so it was not written by Dropless: "
                "choose another folder"
            )

    def send(self) -> None:
        """Upload the folder. The manifest is sent first, so that an incomplete folder is recognized when the upload is
        repeated. The index is sent last, because it marks the folder as complete.

        Shards that the remote already has are not sent again. Raises DataError if some files cannot be sent.
        """
        if self.whole:
            return
        files = [file_of(entry) for entry in read_json(self.folder / INDEX)["shards"]]
        files += read_json(self.folder / MANIFEST).get("documents", [])
        try:
            self._uploader.upload_file(MANIFEST)
            there = sizes(self.remote, [file["basename"] for file in files]) or {}
            missing = [file["basename"] for file in files if there.get(file["basename"]) != file["bytes"]]
            with ThreadPoolExecutor(UPLOADS) as threads:
                sent = threads.map(self._uploader.upload_file, missing)
                for _ in tqdm(sent, total=len(missing), desc=f"Uploading to {self.remote}", unit="file", delay=2):
                    pass
            self._uploader.upload_file(INDEX)
        except Exception as error:
            raise DataError(
                f"{self.folder} could not be uploaded completely to {self.remote!r} ({_first_line(error)}): start "
                "again; only the upload is repeated"
            ) from None

    def _fetch(self, name: str) -> dict[str, Any] | None:
        """The content of a JSON file in the remote; None if the file does not exist."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                return read_json(fetch(f"{self.remote}/{name}", Path(folder)))
            except FetchError as error:
                if error.absent:
                    return None
                raise ConfigError(f"{self.remote!r} cannot be read ({error})") from None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no reason given'])[0]}"
