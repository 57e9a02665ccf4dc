"""Ownership of a save folder in an object store: an object that contains the name of the run, and that the run renews
regularly.

In stores with conditional writes, such as S3 and GCS, only one run at a time can hold the lease, and a run that has
lost the lease commits no more checkpoints. In other stores, two runs that start in the same second may both hold the
lease, until one of them reads the object before its next commit and finds the name of the other run.
"""

import json
import time
from dataclasses import dataclass

from data.base.console import logger, notice
from data.base.errors import ConfigError
from train.checkpoint.owner import FoundOwner, read_owner, this_owner
from train.checkpoint.remote.folder import OWNER, RemoteFolder

BEAT = 20.0
"""Seconds between two renewals."""
STALE = 90.0
"""Seconds without a renewal after which an owner on another machine is considered dead."""
POLL = 3.0
"""Seconds between two checks of whether another owner has renewed its lease."""


class TakenOverError(Exception):
    """This run no longer owns the folder."""


@dataclass
class Lease:
    """A run's ownership of a folder in a store."""

    folder: RemoteFolder
    owner: str
    """The record that names the owner (see train.checkpoint.owner.this_owner)."""
    beats: int = 0

    def renew(self) -> None:
        """Renew the lease. Raises StoreError, and TakenOverError if the object belongs to another run or was
        deleted."""
        self.beats += 1
        content = _content(self.owner, self.beats)
        # Read the object first, because in a store without conditional writes, the write below would overwrite another
        # run's object.
        found = self.folder.store.read(OWNER)
        if found is not None and _owner_in(found[0]) == self.owner:
            if self.folder.store.write(OWNER, content, replaces=found[1]) is not None:
                return
            found = self.folder.store.read(OWNER)
            if found is not None and _owner_in(found[0]) == self.owner:
                return  # renewed by an earlier request whose response was lost, or by another thread
        why = "its lease was deleted" if found is None else f"taken over by {_described(found[0]).name}"
        raise TakenOverError(f"save_folder {self.folder.url} no longer belongs to this run: {why}")

    def release(self) -> None:
        """Delete the lease's object if it names this run. Raises StoreError."""
        found = self.folder.store.read(OWNER)
        if found is not None and _owner_in(found[0]) == self.owner:
            self.folder.store.delete([OWNER])


def check_unowned(folder: RemoteFolder) -> None:
    """Raise ConfigError if a running process on this machine owns the folder. Unlike `take`, this function does not
    wait."""
    found = folder.store.read(OWNER)
    if found is not None and (owner := _described(found[0])).alive:
        raise _refusal(folder, owner)


def take(folder: RemoteFolder, run_name: str) -> Lease:
    """Take ownership of the folder. The lease of a run on this machine that has ended is taken over immediately. The
    lease of a run on another machine is taken over if it has not been renewed for STALE seconds.

    Raises ConfigError if another run owns the folder, and StoreError for problems of the store.
    """
    owner = this_owner(run_name).decode()
    silent: str | None = None
    while True:
        found = folder.store.read(OWNER)
        described = None if found is None else _described(found[0])
        version = None
        if found is not None and _owner_in(found[0]) == owner:
            return Lease(folder, owner)  # an earlier attempt wrote the object, but its response was lost
        if found is None or described is None:
            version = folder.store.write(OWNER, _content(owner, 0), replaces="")
        elif described.alive:
            raise _refusal(folder, described)
        elif described.alive is False or found[1] == silent:
            version = folder.store.write(OWNER, _content(owner, 0), replaces=found[1])
            if version is not None:
                logger.info(f"save_folder {folder.url}: taken over from {described.name}, which has ended")
        else:
            silent = _watch(folder, found[1], described)
        if version is not None:
            now = folder.store.read(OWNER)
            if now is None or _owner_in(now[0]) != owner:
                raise _refusal(folder, _described(now[0]) if now is not None else FoundOwner(name="none", alive=None))
            return Lease(folder, owner)


def _watch(folder: RemoteFolder, version: str, owner: FoundOwner) -> str | None:
    """Wait for STALE seconds. Return `version` if the owner has not renewed its lease, or None if the object was
    deleted. Raises ConfigError if the owner renews the lease."""
    notice(
        f"save_folder {folder.url}: waiting up to {STALE:.0f} s to see whether its owner is alive: {owner.name}. Only "
        "the owner's lease is visible from this machine"
    )
    end = time.monotonic() + STALE
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(POLL, left))
        now = folder.store.read(OWNER)
        if now is None:
            return None
        if now[1] != version:
            raise _refusal(folder, _described(now[0]))
    return version


def _refusal(folder: RemoteFolder, owner: FoundOwner) -> ConfigError:
    return ConfigError(
        f"is {folder.url}, which belongs to {owner.name}, and that run is alive: wait until it ends, stop it, or set "
        "another run_name or save_folder",
        key="save_folder",
    )


def _content(owner: str, beats: int) -> bytes:
    """Return the content of the lease's object. `beats` makes the content of every write different, because some stores
    use a hash of the content as the version."""
    return json.dumps({"owner": owner, "beats": beats}).encode()


def _owner_in(data: bytes) -> str | None:
    try:
        return json.loads(data)["owner"]
    except (ValueError, KeyError, TypeError):
        return None


def _described(data: bytes) -> FoundOwner:
    return read_owner(str(_owner_in(data)).encode())
