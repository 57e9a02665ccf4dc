"""Local staging folders of save folders and of checkpoints (load_path) in object stores."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from data.base.console import logger, notice
from data.base.errors import ConfigError
from data.base.locks import exclusive
from data.secrets.redaction import is_address
from data.stores.address import folder_for, url_defect
from data.stores.store import open_store
from train.checkpoint.remote.folder import Contents, RemoteFolder, store_errors_named
from train.checkpoint.remote.lease import check_unowned
from train.checkpoint.save_folder import (
    LATEST,
    RUN,
    checkpoints,
    damaged,
    fill_name,
    leftovers,
    local_folder,
    named_batch,
    read_run_id,
    remove,
)
from train.config.schema import TrainConfig

STAGING = Path(TrainConfig.__dataclass_fields__["save_staging_folder"].default)
"""The default staging folder, for scripts without a config."""
_FETCHED = "fetched"
"""Subfolder of save_staging_folder for checkpoints that are fetched for load_path or scripts. Runs do not write their
own checkpoints to it."""


def open_save_folder(config: TrainConfig, run_name: str) -> RemoteFolder | None:
    """Open the save folder; return None if it is not in an object store. Sends no request to the store. Raises
    ConfigError, for example if credentials are missing."""
    if config.save_folder is None or not is_address(config.save_folder):
        return None
    return open_remote(fill_name(config.save_folder, run_name, "save_folder"), "save_folder")


def check_remote_unowned(remote: RemoteFolder) -> None:
    """Raise ConfigError if a running process on this machine owns the folder, or the store refuses access."""
    with store_errors_named("save_folder"):
        check_unowned(remote)


def open_exports(folder: str, run_name: str, key: str) -> RemoteFolder | None:
    """Open the folder for exports; return None if it is not in an object store. Raises ConfigError, for example if the
    store does not respond."""
    if not is_address(folder):
        return None
    remote = open_remote(fill_name(folder, run_name, key), key)
    with store_errors_named(key):
        remote.store.sizes("huggingface/")
    return remote


def open_remote(url: str, key: str, *, writable: bool = True) -> RemoteFolder:
    """Open the folder at `url` in an object store. Raises ConfigError, whose message begins with `key`."""
    if (defect := url_defect(url)) is not None:
        raise ConfigError(defect, key=key)
    try:
        return RemoteFolder(open_store(url, writable=writable))
    except ConfigError as error:
        raise ConfigError(f"is {url!r}, but {error}", key=key) from None


def look(remote: RemoteFolder, folder: Path, config: TrainConfig) -> Contents:
    """List the save folder for a run that may write to it. Empties the staging folder if the staging folder and the
    folder in the store belong to different runs.

    Raises ConfigError if the store refuses access, or the folder contains checkpoints that this run neither resumes
    from nor may overwrite.
    """
    _refuse_to_delete(config, remote.url)
    with store_errors_named("save_folder"):
        contents = remote.look()
        _refuse_to_mix(config, remote.url, contents)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as made:
            if (run := remote.store.read(RUN)) is not None:
                Path(made, RUN).write_bytes(run[0])
            run_id = read_run_id(Path(made))
        if run_id is None or run_id != read_run_id(folder):
            _empty(folder, remote.url)
        if config.autoresume and contents.committed and not (folder / RUN).exists():
            remote.fetch_beside(folder, contents)
    return contents


def _refuse_to_delete(config: TrainConfig, url: str) -> None:
    deletes = config.save_overwrite and not config.autoresume
    if deletes and config.load_path is not None and f"{config.load_path}/".startswith(f"{url}/"):
        raise ConfigError(
            f"is {config.load_path!r}, which save_overwrite would delete with the other checkpoints of {url}: set "
            "another run_name or save_folder",
            key="load_path",
        )


def _refuse_to_mix(config: TrainConfig, url: str, contents: Contents) -> None:
    if contents.committed and not (config.autoresume or config.save_overwrite):
        raise ConfigError(
            f"save_folder {url} contains {len(contents.committed)} checkpoint(s), the newest "
            f"{contents.committed[-1]}: set autoresume=true to resume from it, save_overwrite=true to delete them, or "
            "another run_name"
        )


def _empty(folder: Path, url: str) -> None:
    """Empty the staging folder. Its checkpoints belong to a run whose folder in the store has been deleted or
    replaced."""
    for path in (*checkpoints(folder), *damaged(folder), *leftovers(folder)):
        logger.info(f"deleted {path}: it does not belong to the run in {url}")
        remove(path)
    for path in folder.iterdir():
        if path.is_file() and not path.name.startswith("."):
            path.unlink()


@cache
def fetch_checkpoint(url: str, root: str, key: str) -> Path:
    """Fetch and verify the checkpoint at a URL, with the files next to it, into a folder below root. A URL that ends in
    /latest refers to the newest checkpoint. A checkpoint that was already fetched is not fetched again. key: the name
    of the setting or argument that contains the URL, for messages.

    Raises ConfigError if there is no such checkpoint or it cannot be fetched, and CorruptCheckpointError if it is
    corrupt.
    """
    if (defect := url_defect(url)) is not None:
        raise ConfigError(defect, key=key)
    parent, _, name = url.rstrip("/").rpartition("/")
    remote = open_remote(parent, key, writable=False)
    folder = folder_for(parent, Path(root, _FETCHED))
    with (
        store_errors_named(key),
        exclusive(folder.with_name(f"{folder.name}.lock"), lambda: notice(f"Waiting for another rank to fetch {url}")),
    ):
        contents = remote.look()
        if name == LATEST and contents.committed:
            name = contents.committed[-1]
        if name not in contents.committed:
            raise ConfigError(f"is {url!r}, but {_what_is_there(name, url, contents)}", key=key)
        folder.mkdir(parents=True, exist_ok=True)
        remote.fetch_beside(folder, contents)
        return remote.fetch_verified(name, folder, contents, trust_present=True)


def load_path_of(config: TrainConfig) -> Path | None:
    """Return the value of load_path. If it is a URL, the checkpoint is fetched, and the path of the local copy is
    returned. Raises the same errors as `fetch_checkpoint`."""
    if config.load_path is None or not is_address(config.load_path):
        return None if config.load_path is None else Path(config.load_path)
    return fetch_checkpoint(config.load_path, config.save_staging_folder, "load_path")


@contextmanager
def planned_folder(config: TrainConfig, run_name: str) -> Iterator[Path | None]:
    """Yield a folder with the checkpoint that a run would resume from: the save folder or, for a store, a temporary
    folder with a copy of the checkpoint without its tensors. Changes no files of a run. Raises ConfigError in the same
    cases as `look`.
    """
    remote = open_save_folder(config, run_name)
    if remote is None:
        yield local_folder(config, run_name)
        return
    _refuse_to_delete(config, remote.url)
    with tempfile.TemporaryDirectory() as made:
        folder = folder_for(remote.url, made)
        with store_errors_named("save_folder"):
            contents = remote.look()
            _refuse_to_mix(config, remote.url, contents)
            for name in contents.committed[-1:]:
                (folder / name).mkdir(parents=True)
                remote.fetch(name, folder / name, contents, tensors=False)
                remote.fetch_beside(folder, contents)
        yield folder if contents.committed else None


def path_here(place: str, key: str) -> Path:
    """Return a path unchanged. For a URL, fetch the checkpoint and return the path of the local copy."""
    return fetch_checkpoint(place, str(STAGING), key) if is_address(place) else Path(place)


def _what_is_there(name: str, url: str, contents: Contents) -> str:
    if name in contents.incomplete:
        return "this checkpoint has no manifest: the checkpoint was not sent completely, or is being deleted"
    if contents.committed:
        return f"this checkpoint does not exist; the newest checkpoint there is {contents.committed[-1]}"
    below = [found for found in contents.sizes if found.startswith(f"{name}/")]
    inside = sorted({part for found in below if named_batch(Path(part := found.split("/")[1])) is not None})
    if inside:
        return (
            f"it must be the URL of a checkpoint, such as {url.rstrip('/')}/{inside[-1]} or {url.rstrip('/')}/{LATEST}"
        )
    return "there is no checkpoint"


def is_first_rank() -> bool:
    """Whether this process is rank 0, the only rank that accesses a save folder in a store. Can be called before the
    process group exists."""
    return os.environ.get("RANK", "0") == "0"


def check_links(folder: Path) -> None:
    """Raise ConfigError if the staging folder's file system has no hard links."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as made:
        file = Path(made, "file")
        file.touch()
        try:
            Path(made, "link").hardlink_to(file)
        except OSError as error:
            raise ConfigError(
                f"is on a file system without hard links ({folder}: {error.strerror}): specify a folder on another "
                f"disk",
                key="save_staging_folder",
            ) from None
