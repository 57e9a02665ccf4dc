"""A save folder in an object store: list, fetch, verify, send, commit and delete its checkpoints.

A checkpoint counts as existing if its manifest exists, so the manifest is sent last and deleted first.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data.base.console import logger
from data.base.errors import ConfigError
from data.base.sizes import format_bytes
from data.stores.store import Store, StoreError
from train.checkpoint.retention import KEEP, Retention
from train.checkpoint.save_folder import INCIDENTS, LOGS, PART, named_batch, remove
from train.checkpoint.storage.files import verify_files
from train.checkpoint.storage.manifest import MANIFEST, CorruptCheckpointError, read_manifest

OWNER = ".owner.json"
"""Name of the object that identifies the owner. It exists while a run owns the folder, and remains if the run is
killed."""
TENSORS = ".distcp"
"""Suffix of the files that contain tensors."""
_RESERVE = 2**20
"""Minimum number of bytes that must remain free on the disk after a download."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The objects in the folder at one moment."""

    committed: tuple[str, ...]
    """Checkpoints that have a manifest, oldest first. They may be corrupt."""
    incomplete: tuple[str, ...]
    """Checkpoints without a manifest. A run was killed while it was sending or deleting them, or is still sending
    them."""
    sizes: dict[str, int]
    """The size in bytes of each object, by name."""

    def of(self, checkpoint: str) -> list[str]:
        """Names of a checkpoint's objects, with the manifest last."""
        names = [name for name in self.sizes if name.startswith(f"{checkpoint}/")]
        return sorted(names, key=lambda name: (name == f"{checkpoint}/{MANIFEST}", name))

    @property
    def beside(self) -> list[str]:
        """Names of the objects that belong to the run but to none of its checkpoints."""
        return [name for name in self.sizes if _checkpoint_of(name) is None and not name.startswith(".")]


@contextmanager
def store_errors_named(key: str | None = None) -> Iterator[None]:
    """Convert a StoreError to a ConfigError. key: the setting or argument that the error is about."""
    try:
        yield
    except StoreError as error:
        text = str(error) if key is None else f"cannot be used: {error}"
        raise ConfigError(f"{text}: check the name of the folder and the credentials", key=key) from None


class RemoteFolder:
    """A save folder in an object store. Methods raise StoreError for problems of the store, and ConfigError for
    problems on this machine."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def url(self) -> str:
        return self.store.url

    def look(self) -> Contents:
        sizes = self.store.sizes()
        names = {found for name in sizes if (found := _checkpoint_of(name)) is not None}
        committed = {name for name in names if f"{name}/{MANIFEST}" in sizes}
        return Contents(
            committed=tuple(sorted(committed, key=_batch)),
            incomplete=tuple(sorted(names - committed, key=_batch)),
            sizes=sizes,
        )

    def fetch_verified(self, name: str, folder: Path, contents: Contents, *, trust_present: bool = False) -> Path:
        """Fetch a committed checkpoint into the folder and verify it, unless the folder already contains a valid copy.

        trust_present: check only the manifest of an existing copy; its other files are verified when they are read.
        Raises CorruptCheckpointError, with the path of the local copy, if the data does not match the manifest.
        """
        path, part = folder / name, folder / f"{PART}fetched-{name}"
        if path.is_dir() and self.is_same(name, path) and (trust_present or _defect(path) is None):
            return path
        logger.info(f"fetching {self.url}/{name} to {path}")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            self.fetch(name, part, contents)
            verify_files(part)
        except CorruptCheckpointError as error:
            raise CorruptCheckpointError(path, error.name, f"{error.defect} (in {self.url}/{name})") from None
        else:
            if path.exists():
                remove(path)
            part.rename(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return path

    def fetch_beside(self, folder: Path, contents: Contents) -> None:
        """Fetch the files that an export needs in addition to the checkpoint. Existing copies in the folder are
        replaced."""
        names = [name for name in contents.beside if "/" not in name or name.startswith("tokenizer/")]
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        parts = {name: _part(folder / name) for name in names}
        self.store.fetch((part, name) for name, part in parts.items())
        for name, part in parts.items():
            part.replace(folder / name)

    def is_same(self, name: str, path: Path) -> bool:
        """Whether the local checkpoint is the same as the checkpoint of this name in the store. Only the manifests are
        compared."""
        found = self.store.read(f"{name}/{MANIFEST}")
        try:
            return found is not None and (path / MANIFEST).read_bytes() == found[0]
        except OSError:
            return False

    def send(self, path: Path, name: str, *, confirm: Callable[[], None]) -> int:
        """Send and commit a checkpoint, and return its size in bytes. An existing checkpoint of the same name is
        replaced. The files are verified before they are sent. confirm is called before the first change and before the
        commit, and may raise an error to stop.
        """
        manifest = read_manifest(path)
        assert manifest is not None, "every saved checkpoint has a manifest"
        verify_files(path)
        confirm()
        self.store.delete([f"{name}/{MANIFEST}"])
        files = [*manifest.files, *([KEEP] if (path / KEEP).exists() else [])]
        self.store.send((path / file, f"{name}/{file}") for file in files)
        there = self.store.sizes(f"{name}/")
        for file, digest in manifest.files.items():
            if (found := there.get(f"{name}/{file}")) != digest.size:
                bytes_there = "does not exist" if found is None else f"has {found:,} of {digest.size:,} bytes"
                raise StoreError(f"{self.url}/{name}/{file} was sent, but {bytes_there}")
        confirm()
        self.store.send([(path / MANIFEST, f"{name}/{MANIFEST}")])
        return manifest.size

    def remove(self, name: str, contents: Contents) -> None:
        """Delete a checkpoint, starting with its manifest."""
        self.store.delete(reversed(contents.of(name)))

    def clear(self) -> None:
        """Delete the same files that a new run deletes from a local save folder."""
        contents = self.look()
        for name in (*contents.committed, *contents.incomplete):
            self.remove(name, contents)
        self.store.delete(name for name in contents.beside if name in LOGS or name.startswith(f"{INCIDENTS}/"))

    def prune(self, retention: Retention, batch: int) -> list[str]:
        """Delete the checkpoints that are superseded by the committed checkpoint of `batch`, and return the names of
        the deleted checkpoints."""
        contents = self.look()
        present = [Path(name) for name in contents.committed]
        superseded = retention.superseded(present, batch, lambda path: f"{path.name}/{KEEP}" in contents.sizes)
        for path in superseded:
            self.remove(path.name, contents)
        return [path.name for path in superseded]

    def fetch(self, name: str, part: Path, contents: Contents, *, tensors: bool = True) -> None:
        """Fetch a committed checkpoint into the existing folder `part`. Only names and sizes of files are checked. With
        tensors=False, the files that contain tensors are created with their sizes, but without data.
        """
        self.store.fetch([(part / MANIFEST, f"{name}/{MANIFEST}")])
        manifest = read_manifest(part)
        assert manifest is not None, "the manifest has just been fetched"
        for file, digest in manifest.files.items():
            if (size := contents.sizes.get(f"{name}/{file}")) != digest.size:
                there = "is missing" if size is None else f"has {size:,} bytes, but {digest.size:,} were written"
                raise CorruptCheckpointError(part, file, there)
        wanted = [file for file in manifest.files if tensors or not file.endswith(TENSORS)]
        _check_space(sum(manifest.files[file].size for file in wanted), part, f"{self.url}/{name}")
        for file in manifest.files.keys() - wanted:
            (part / file).touch()
            os.truncate(part / file, manifest.files[file].size)
        try:
            self.store.fetch((part / file, f"{name}/{file}") for file in wanted)
        except StoreError as error:
            if not error.absent:
                raise
            raise CorruptCheckpointError(part, MANIFEST, f"lists an object that is missing: {error}") from None
        if f"{name}/{KEEP}" in contents.sizes:
            (part / KEEP).touch()


def files_beside(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files in a local save folder that are neither hidden nor part of a checkpoint, and the names of their
    objects in a store."""
    for parent, folders, names in os.walk(folder):
        below = Path(parent).relative_to(folder)
        folders[:] = [name for name in folders if not name.startswith(".") and not _is_checkpoint(below / name)]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and not path.is_symlink() and _checkpoint_of(name) is None:
                yield path, (below / name).as_posix()


def _checkpoint_of(name: str) -> str | None:
    """Return the name of the checkpoint that an object belongs to, or None."""
    first, slash, _ = name.partition("/")
    return first if slash and named_batch(Path(first)) is not None else None


def _is_checkpoint(path: Path) -> bool:
    return len(path.parts) == 1 and named_batch(path) is not None


def _batch(name: str) -> int:
    batch = named_batch(Path(name))
    assert batch is not None
    return batch


def _part(path: Path) -> Path:
    return path.with_name(f"{PART}{path.name}")


def _defect(path: Path) -> CorruptCheckpointError | None:
    try:
        verify_files(path)
    except CorruptCheckpointError as error:
        return error
    return None


def _check_space(n_bytes: int, folder: Path, what: str) -> None:
    usage = shutil.disk_usage(folder)
    if usage.total and usage.free < n_bytes + _RESERVE:
        raise ConfigError(
            f"{what} takes {format_bytes(n_bytes)}, but {format_bytes(usage.free, down=True)} are free in "
            f"{folder.parent}: free some space, or specify another save_staging_folder"
        )
