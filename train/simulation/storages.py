"""Tracks the allocated bytes of each storage from its creation until it is freed."""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class Phase(NamedTuple):
    """A part of the simulation, such as a forward pass."""

    name: str
    alive: int
    """Allocated bytes at the end of the phase."""
    peak: int
    """Maximum number of allocated bytes during the phase."""
    parts: dict[str, int]
    """Allocated bytes at the peak, by category."""


class _Live(NamedTuple):
    reference: weakref.ref[torch.UntypedStorage]
    n_bytes: int
    part: str


class Storages:
    """Allocated bytes by category. add() sets the category of a storage; the default is the current value of the
    attribute `part`."""

    def __init__(self) -> None:
        self.part = "other"
        self.alive = 0
        self.phases: list[Phase] = []
        self._parts = Counter[str]()
        self._live: dict[int, _Live] = {}
        self._peak, self._parts_at_peak = 0, dict[str, int]()

    def add(self, storage: torch.UntypedStorage, part: str | None = None) -> None:
        """Count a storage until it is freed. If it is already counted, only its category changes, and only if `part` is
        given."""
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
        """Update the size of a resized storage. FSDP2 allocates and frees gathered weights by resizing their
        storage."""
        number = id(storage)
        if number in self._live:
            self._freed(number)
        self.add(storage, part)

    @contextmanager
    def phase(self, name: str, part: str | None = None) -> Iterator[None]:
        """Record a phase. part: the category of storages created in the phase."""
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
        # `>=` is used instead of `>`, so that the categories at the peak are also updated if only the category of an
        # allocated storage has changed.
        if self.alive >= self._peak:
            self._peak, self._parts_at_peak = self.alive, dict(self._parts)


@contextmanager
def counting_resizes(storages: Storages, part: str) -> Iterator[None]:
    """Within this context, resized storages are counted in the category `part`. This is needed because torch's
    dispatcher does not report resizing."""
    resize = torch.UntypedStorage.resize_

    def resize_and_count(storage: torch.UntypedStorage, size: int) -> Any:
        result = resize(storage, size)
        storages.resized(storage, part)
        return result

    torch.UntypedStorage.resize_ = resize_and_count  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = resize
