"""How many bytes are alive, from when each storage is made to when it is freed."""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class Phase(NamedTuple):
    """A stretch of a run."""

    name: str
    alive: int
    """Bytes at its end."""
    peak: int
    """Most bytes in it."""
    parts: dict[str, int]
    """What was alive at the peak."""


class _Live(NamedTuple):
    reference: weakref.ref[torch.UntypedStorage]
    n_bytes: int
    part: str


class Storages:
    """Bytes by part. A part is a word that whoever adds a storage chooses; `part` is the one for all others."""

    def __init__(self) -> None:
        self.part = "other"
        self.alive = 0
        self.phases: list[Phase] = []
        self._parts = Counter[str]()
        self._live: dict[int, _Live] = {}
        self._peak, self._parts_at_peak = 0, dict[str, int]()

    def add(self, storage: torch.UntypedStorage, part: str | None = None) -> None:
        """Counts it until it is freed. One that is counted already stays as it is, or becomes of the part."""
        number = id(storage)
        known = self._live.get(number)
        if known is not None and part in (None, known.part):
            return
        if known is not None:
            self._count(known.part, -known.n_bytes)
        n_bytes = storage.nbytes()
        chosen = part or self.part
        self._live[number] = _Live(weakref.ref(storage, lambda _: self._freed(number)), n_bytes, chosen)
        self._count(chosen, n_bytes)

    def resized(self, storage: torch.UntypedStorage, part: str) -> None:
        """Its size has changed: FSDP2 frees and allocates the memory of gathered weights so."""
        number = id(storage)
        if number in self._live:
            self._freed(number)
        self.add(storage, part)

    @contextmanager
    def phase(self, name: str, part: str | None = None) -> Iterator[None]:
        """Notes a phase. part: of what is made within."""
        self._peak, before = self.alive, self.part
        self._parts_at_peak = dict(self._parts)
        self.part = part or before
        try:
            yield
        finally:
            self.part = before
        self.phases.append(Phase(name, self.alive, self._peak, self._parts_at_peak))

    def _freed(self, number: int) -> None:
        live = self._live.pop(number)
        self._count(live.part, -live.n_bytes)

    def _count(self, part: str, n_bytes: int) -> None:
        self.alive += n_bytes
        self._parts[part] += n_bytes
        # Also when something alive becomes of another part.
        if self.alive >= self._peak:
            self._peak, self._parts_at_peak = self.alive, dict(self._parts)


@contextmanager
def resizes_noted(storages: Storages, part: str) -> Iterator[None]:
    """Within, storages that are resized are counted as of the part. No operation of torch's dispatcher tells of it."""
    resize = torch.UntypedStorage.resize_

    def resize_and_note(storage: torch.UntypedStorage, size: int) -> Any:
        result = resize(storage, size)
        storages.resized(storage, part)
        return result

    torch.UntypedStorage.resize_ = resize_and_note  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = resize
