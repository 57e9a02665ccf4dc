"""Who owns a save folder in an object store: an object that names the run, which the run renews.

Where the store honours conditions on writes, as S3 and GCS do, one run at a time gets it, and a run that has lost it
commits nothing more. Elsewhere two runs that start in the same second may both get it, until one finds the other's
name there before its next commit.
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
"""Seconds that an owner on another machine is watched: without a renewal in them it counts as dead."""
POLL = 3.0
"""Seconds between two looks at it."""


class TakenOverError(Exception):
    """Another run owns the folder."""


@dataclass
class Lease:
    """A run's ownership of a folder."""

    folder: RemoteFolder
    owner: str
    """See train.checkpoint.owner.this_owner."""
    beats: int = 0

    def renew(self) -> None:
        """Raises TakenOverError when the object is another run's or gone, and StoreError."""
        self.beats += 1
        content = _content(self.owner, self.beats)
        # A store without conditions would write over another's.
        found = self.folder.store.read(OWNER)
        if found is not None and _owner_in(found[0]) == self.owner:
            if self.folder.store.write(OWNER, content, replaces=found[1]) is not None:
                return
            found = self.folder.store.read(OWNER)
            if found is not None and _owner_in(found[0]) == self.owner:
                return  # written by a try whose answer was lost, or by another thread
        by = "its object was deleted" if found is None else f"taken over by {_described(found[0]).name}"
        raise TakenOverError(f"save_folder {self.folder.url} is no longer this run's: {by}")

    def release(self) -> None:
        """Deletes the object if it is this run's. Raises StoreError."""
        found = self.folder.store.read(OWNER)
        if found is not None and _owner_in(found[0]) == self.owner:
            self.folder.store.delete([OWNER])


def check_unowned(folder: RemoteFolder) -> None:
    """Raises ConfigError when a run that is alive on this machine owns the folder. Waits for nothing. See `take`."""
    found = folder.store.read(OWNER)
    if found is not None and (owner := _described(found[0])).alive:
        raise _refusal(folder, owner)


def take(folder: RemoteFolder, run_name: str) -> Lease:
    """Makes the folder this run's. What a run on this machine left that has ended is taken over at once; that of
    another machine when it was not renewed for STALE seconds.

    Raises ConfigError when another run owns the folder, and StoreError.
    """
    owner = this_owner(run_name).decode()
    silent: str | None = None
    while True:
        found = folder.store.read(OWNER)
        described = None if found is None else _described(found[0])
        version = None
        if found is not None and _owner_in(found[0]) == owner:
            return Lease(folder, owner)  # written by a try whose answer was lost
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
    """Waits until the owner has missed its renewals; None when it has ended meanwhile. Raises ConfigError when it
    renews."""
    notice(
        f"save_folder {folder.url}: waiting up to {STALE:.0f} s to see whether its owner is alive, {owner.name}, of "
        "which only the object can be seen here"
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
        f"is {folder.url}, which belongs to {owner.name}, and that run is alive: wait for its end or stop it, or write "
        "another run_name or save_folder",
        key="save_folder",
    )


def _content(owner: str, beats: int) -> bytes:
    """With a number: where the version is a hash, the same bytes would be the same version."""
    return json.dumps({"owner": owner, "beats": beats}).encode()


def _owner_in(data: bytes) -> str | None:
    try:
        return json.loads(data)["owner"]
    except (ValueError, KeyError, TypeError):
        return None


def _described(data: bytes) -> FoundOwner:
    return read_owner(str(_owner_in(data)).encode())
