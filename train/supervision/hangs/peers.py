"""Communication with the other ranks through the store: heartbeats, and the failure that has ended the run.

One thread with its own connection makes all calls that may block, because a server whose process is stopped never
responds.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

from data.base.errors import ConfigError
from data.loading import processes
from train.distributed.failures import Failure, is_shown, note_shown, share, shared
from train.supervision.hangs.stragglers import Heartbeat

PERIOD = 1.0
"""Seconds between two heartbeats. The interval is longer if there are many ranks (see _period)."""
_SOON = 0.1
"""Seconds between two exchanges with the store while the run is ending."""
_RANKS_PER_SECOND = 256
"""Maximum number of heartbeats per second that the server receives. Each heartbeat needs three requests."""


@dataclass(frozen=True, kw_only=True)
class RankProcess:
    """The process of a rank."""

    rank: int
    machine: tuple[str, str, str]
    pid: int
    started: float

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.machine[0]}, pid {self.pid})"

    def exists(self) -> bool:
        """Whether the process exists. Only valid for ranks on this machine."""
        return processes.is_alive(self.pid, self.started)


def this_process(rank: int) -> RankProcess:
    pid = os.getpid()
    return RankProcess(rank=rank, machine=processes.machine(), pid=pid, started=processes.start_time(pid))


def _period(world_size: int) -> float:
    return max(PERIOD, world_size / _RANKS_PER_SECOND)


class Peers:
    """This rank's view of the other ranks. The thread of this class sets the attributes, and other threads read
    them."""

    def __init__(
        self,
        connect: Callable[[], Store],
        rank: int,
        world_size: int,
        *,
        beat: Callable[[], Heartbeat],
        clock: Callable[[], float],
    ) -> None:
        self.rank, self.world_size, self.period = rank, world_size, _period(world_size)
        self.failure: Failure | None = None
        self.shown = False
        self.connected = True
        self.beats: dict[int, Heartbeat] = {}
        """The latest heartbeats of all ranks."""
        self.answered = clock()
        """Time of the store's last response."""
        self.all_left = False
        self._connect, self._beat, self._clock = connect, beat, clock
        self._changed: dict[int, tuple[int, float]] = {}
        self._read_at = clock()
        self._to_share: Failure | None = None
        self._to_show = self._to_leave = self._read_once = False
        self._reads = rank in (0, 1)
        self._stopped, self._wake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._wake.set()
        self._thread.join(1)  # wait only 1 second, because the thread may be waiting for the server

    def silence(self, rank: int) -> float:
        """Seconds between the last new heartbeat of the rank and the last time that heartbeats were read. Ranks other
        than 0 and 1 read heartbeats only when they need to."""
        return self._read_at - self._changed.get(rank, (0, self._read_at))[1]

    def share(self, failure: Failure, seconds: float) -> Failure:
        """Share a failure and return the first one shared by any rank, or `failure` if the store does not respond."""
        self._to_share = failure
        self._wait_until(lambda: self.failure is not None or not self.connected, seconds)
        return self.failure or failure

    def mark_shown(self) -> None:
        self._to_show = True
        self._wake.set()

    def wait_until_shown(self, seconds: float) -> bool:
        return self._wait_until(lambda: self.shown or not self.connected, seconds) and self.shown

    def leave(self, n_lost: int, seconds: float) -> None:
        """Announce that this rank ends. Rank 0 ends last, because its process may host the store."""
        self._n_lost, self._to_leave = n_lost, True
        self._wait_until(lambda: self.all_left or not self.connected, seconds)

    def read_now(self, seconds: float) -> None:
        """Read the heartbeats of all ranks, and update `beats`."""
        self._read_once = True
        self._wait_until(lambda: not self._read_once or not self.connected, seconds)

    def _wait_until(self, is_so: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        self._wake.set()
        while not is_so():
            if time.monotonic() > end or not self._thread.is_alive():
                return is_so()
            time.sleep(0.02)
        return True

    def _run(self) -> None:
        try:
            self._store = self._connect()
            while not self._stopped.is_set():
                self._exchange()
                self.answered = self._clock()
                hurry = self.failure is not None or self._to_leave or self._to_share is not None
                self._wake.wait(_SOON if hurry else self.period)
                self._wake.clear()
        except (RuntimeError, ConfigError):  # torch's DistNetworkError: the server has ended
            self.connected = False

    def _exchange(self) -> None:
        store = self._store
        store.set(f"beat/{self.rank}", self._beat().to_json())
        if self.failure is None and self._to_share is not None:
            self.failure = share(store, self._to_share)
        elif self.failure is None:
            self.failure = shared(store)
        if self._reads or self._read_once:
            self._read()
        if self._to_show:
            note_shown(store)
            self._to_show, self.shown = False, True
        elif self.failure is not None and not self.shown:
            self.shown = is_shown(store)
        if self._to_leave:
            self._leave()

    def _read(self) -> None:
        keys = [f"beat/{rank}" for rank in range(self.world_size)]
        if not self._store.check(keys):  # pyright: ignore[reportAttributeAccessIssue]: torch's stubs lack it
            self._read_once = False
            return
        self._read_at = now = self._clock()
        for rank, text in enumerate(self._store.multi_get(keys)):
            self.beats[rank] = beat = Heartbeat.from_json(text)
            # The first heartbeat has number 0. A rank that is stopped right after its first heartbeat counts as silent
            # from the time of this heartbeat.
            if rank not in self._changed or self._changed[rank][0] != beat.number:
                self._changed[rank] = beat.number, now
        self._read_once = False

    _has_left = False
    _n_lost = 0

    def _leave(self) -> None:
        n_left = self._store.add("left", 0 if self._has_left else 1)
        self._has_left = True
        self.all_left = self.rank != 0 or n_left >= self.world_size - self._n_lost
