"""Parts in an object store, written by tasks on machines that share no file system.

A task uploads the files of its part under their final names, and then the part's manifest, which marks the part as
complete. If a slice is prepared twice, the same bytes are uploaded twice. Until the dataset is complete, the plan and
the manifests of the parts are below `unfinished/`.
"""

import json
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data.base.errors import ConfigError
from data.mds.writer import PARTS, PLAN, UNFINISHED, refuse_other
from data.preparation.parts.part import PART, PartError, part_folder, read_part
from data.preparation.parts.plan import read_plan
from data.stores.store import PARALLEL, Store, open_store


class RemoteParts:
    """The parts in the folder with this URL. Methods may raise StoreError."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError if there are no credentials."""
        self.url = url
        self._store: Store = open_store(url)

    def claim(self, folder: Path) -> None:
        """Write the plan of the local folder to the store, unless there is a plan. Raises ConfigError if the plan in
        the store belongs to other data."""
        if self._store.read(PLAN) is None and (shards := self._store.sizes("shard.")):
            raise ConfigError(
                f"{self.url} already contains {next(iter(shards))}, which does not belong to a preparation that can be "
                "resumed: choose another folder, or delete this folder"
            )
        self._store.write(PLAN, (folder / PLAN).read_bytes(), replaces="")
        found, planned = self._store.read(PLAN), read_plan(folder)
        assert found is not None
        assert planned is not None
        there = json.loads(found[0])
        refuse_other(self.url, there["made_from"], planned["made_from"])
        if there["sizes"] != planned["sizes"]:
            raise ConfigError(f"{self.url}/{UNFINISHED} was written by another version of Dropless: delete it")

    def done(self) -> set[int]:
        """The numbers of the slices whose parts are complete."""
        return {int(Path(name).stem) for name in self._store.sizes(f"{PARTS}/")}

    def check_writable(self) -> None:
        """Write a small object, which is deleted when the dataset is complete."""
        self._store.write(f"{UNFINISHED}/executor-{uuid.uuid4().hex}", b"")

    def commit(self, folder: Path, number: int) -> None:
        """Upload the part of the slice with this number. `folder` is the local folder in which it was prepared."""
        part, place = read_part(folder, number), part_folder(folder, number)
        assert part is not None
        self._store.send((place / name, name) for name in part.basenames)
        self._store.send([(place / PART, _name_of(number))])

    def fetch_manifests(self, folder: Path) -> None:
        """Download the manifests of the parts to the local folder. Raises PartError if a file of a part is missing or
        has another size than in the part's manifest."""
        sizes = self._store.sizes()
        numbers = [int(Path(name).stem) for name in sizes if name.startswith(f"{PARTS}/")]
        for number in numbers:
            part_folder(folder, number).mkdir(exist_ok=True)
        self._store.fetch((part_folder(folder, number) / PART, _name_of(number)) for number in numbers)
        for number in numbers:
            part = read_part(folder, number, check_files=False)
            assert part is not None
            if missing := [name for name, size in part.basenames.items() if sizes.get(name) != size]:
                raise PartError(
                    f"{self.url}/{missing[0]} is missing, or its size has changed: delete "
                    f"{self.url}/{_name_of(number)} and start again, so that this slice is prepared again"
                )

    def clean(self) -> None:
        """Delete the plan and the manifests of the parts, because the dataset is complete."""
        self._delete(self._store.sizes(f"{UNFINISHED}/"))

    def discard(self) -> None:
        """Delete everything that tasks have written, if it belongs to a preparation."""
        names = self._store.sizes()
        if PLAN in names:
            self._delete(name for name in names if name.startswith((f"{UNFINISHED}/", "shard.", "documents.")))

    def _delete(self, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(PARALLEL) as threads:
            list(threads.map(lambda name: self._store.delete([name]), names))


def _name_of(number: int) -> str:
    return f"{PARTS}/{number:05}.json"
