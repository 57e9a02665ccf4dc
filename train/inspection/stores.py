"""List the checkpoints of a save folder in an object store without fetching their tensors, and fetch checkpoints to
verify them."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.base.errors import ConfigError
from train.checkpoint.owner import LOCK_FILE
from train.checkpoint.remote.folder import OWNER, Contents, RemoteFolder, store_errors_named
from train.checkpoint.remote.staging import STAGING, open_remote
from train.checkpoint.save_folder import LATEST, PART, RUN, named_batch
from train.checkpoint.storage.manifest import MANIFEST, CorruptCheckpointError
from train.inspection.verification import Verified, verify


@contextmanager
def outlined(place: Path | str) -> Iterator[Path]:
    """Yield a path unchanged. For a URL, yield a temporary folder with the same layout as the save folder at the URL.
    This folder contains the manifests; all other objects are represented by sparse files of the same sizes. Raises
    ConfigError if the URL contains no checkpoint or cannot be read."""
    if isinstance(place, Path):
        yield place
        return
    remote, contents, names = _look(place)
    with tempfile.TemporaryDirectory() as made, store_errors_named():
        folder = Path(made)
        for name, n_bytes in contents.sizes.items():
            checkpoint = name.partition("/")[0]
            if name == RUN or (checkpoint in names and name == f"{checkpoint}/{MANIFEST}"):
                _write(folder / name, _read(remote, name))
            elif name == OWNER:
                _write(folder / LOCK_FILE, json.loads(_read(remote, name))["owner"].encode())
            elif checkpoint in names:
                _write(folder / (f"{PART}{name}" if checkpoint in contents.incomplete else name), b"", n_bytes)
        if contents.committed and contents.committed[-1] in names:
            (folder / LATEST).symlink_to(contents.committed[-1])
        yield folder


def verify_there(url: str) -> Iterator[tuple[str, Verified]]:
    """Fetch and verify the checkpoints at a URL, one after the other. Raises ConfigError if the URL contains no
    checkpoint or cannot be read."""
    remote, contents, names = _look(url)
    STAGING.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name in contents.incomplete:
            continue
        with tempfile.TemporaryDirectory(dir=STAGING, prefix="verified-") as made, store_errors_named():
            path = Path(made, name)
            path.mkdir()
            try:
                remote.fetch(name, path, contents)
                verified = verify(path)
            except CorruptCheckpointError as error:
                verified = Verified(checkpoint=path, errors=(error,))
        yield f"{remote.url}/{name}", verified


def _look(url: str) -> tuple[RemoteFolder, Contents, tuple[str, ...]]:
    """Return the save folder of a URL, its contents, and the checkpoints that the URL refers to: all checkpoints of a
    save folder, or a single one."""
    parent, _, name = url.rstrip("/").rpartition("/")
    is_checkpoint = named_batch(Path(name)) is not None
    remote = open_remote(parent if is_checkpoint else url, "the URL", writable=False)
    with store_errors_named():
        contents = remote.look()
    there = (*contents.committed, *contents.incomplete)
    names = tuple(found for found in there if not is_checkpoint or found == name)
    if not names:
        raise ConfigError(f"{url} contains no checkpoint")
    return remote, contents, names


def _read(remote: RemoteFolder, name: str) -> bytes:
    found = remote.store.read(name)
    return found[0] if found is not None else b""


def _write(path: Path, data: bytes, n_bytes: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if n_bytes is not None:
        os.truncate(path, n_bytes)  # extends the file without writing data (a sparse file)
