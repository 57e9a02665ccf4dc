"""The ranks that a launcher has started: missing ranks, clock differences, and folders that nodes share.

Ranks exchange data through the launcher's store (train/distributed/rank_store.py), so a missing rank is reported and
does not block the others.
"""

import fcntl
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError
from train.checkpoint.save_folder import existing_parent
from train.doctor.check import Check
from train.doctor.folders import LOCK_FIX, Folder

_POLL_SECONDS, _SLOWEST_POLL_SECONDS = 0.02, 0.5
_CONNECT_SECONDS = 30.0
"""Seconds that the other ranks wait for rank 0 to start the store, which may be slow on a busy node."""
_PATIENCE = 3600.0
"""Seconds to wait for a response from rank 0. A long limit is acceptable, because rank 0 limits its own waits, and a
lost connection to rank 0 raises an error immediately."""
_SHOWN = 16
"""Maximum number of ranks that a message lists."""
_ROUNDS = 5
_MOST_SKEW = 1.0
"""Largest accepted difference between clocks in seconds. A run does not compare clocks, but the logs of different nodes
are easier to compare if their clocks agree, and object stores reject requests if the clock is wrong by several
minutes."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The position of a rank according to the launcher's environment variables."""

    rank: int
    world_size: int
    local_rank: int
    host: str = field(default_factory=socket.gethostname)

    @property
    def is_first_of_node(self) -> bool:
        return self.local_rank == 0


def place_of(environment: Mapping[str, str]) -> Place:
    """Return the position that the launcher's variables specify. Without a launcher, the process is rank 0 of 1."""
    rank, world_size, local = (int(environment.get(name, default)) for name, default in _VARIABLES)
    return Place(rank=rank, world_size=world_size, local_rank=local)


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


class RankExchange:
    """Exchanges JSON values between ranks: rank 0 collects the values of all ranks and publishes the result."""

    def __init__(self, place: Place, seconds: float) -> None:
        """seconds: minimum time to wait for rank 0. Raises ConfigError if rank 0 cannot be reached."""
        self.place, self.store = place, None
        self._own: dict[str, Any] = {}
        if place.world_size > 1:
            from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]

            from train.distributed.rank_store import connect

            self.store = PrefixStore("doctor", connect(max(seconds, _CONNECT_SECONDS)))

    def publish(self, subject: str, value: Any) -> None:
        """Publish this rank's value for the subject. The value must be JSON-serializable."""
        self._own[subject] = value
        if self.store is not None:
            self.store.set(f"{subject}/{self.place.rank}", json.dumps(value))

    def collect(self, subject: str, ranks: Collection[int], seconds: float) -> dict[int, Any]:
        """Return the published values of `ranks` by rank. Ranks that publish no value within the time limit are
        omitted."""
        if self.store is None:
            return {0: self._own[subject]}
        keys, end, pause = [f"{subject}/{rank}" for rank in ranks], time.monotonic() + seconds, _POLL_SECONDS
        try:
            while not self.store.check(keys) and time.monotonic() < end:
                time.sleep(pause)
                pause = min(1.2 * pause, _SLOWEST_POLL_SECONDS)
            there = [rank for rank, key in zip(ranks, keys, strict=True) if self.store.check([key])]
            return {rank: json.loads(self.store.get(f"{subject}/{rank}")) for rank in there}
        except RuntimeError:  # torch's DistNetworkError
            raise ConfigError("lost the connection to rank 0: it has ended; see its output") from None

    def gather(self, subject: str, value: Any, ranks: Collection[int], seconds: float) -> dict[int, Any]:
        """Publish this rank's value, and return the values of `ranks` that rank 0 has collected within the time limit.
        Every rank returns the same result. Raises ConfigError if rank 0 does not respond."""
        self.publish(subject, value)
        if self.place.rank == 0:
            heard = self.collect(subject, ranks, seconds)
            self.publish(f"all {subject}", sorted(heard.items()))
            return heard
        answer = self.collect(f"all {subject}", [0], _PATIENCE)
        if not answer:
            raise ConfigError(f"rank 0 did not respond within {_PATIENCE:g} s: see its output")
        return dict(answer[0])


def check_ranks(came: Collection[int], answered: Collection[int], world_size: int) -> Check:
    """Check that all ranks have connected and have sent the results of their checks."""
    absent, silent = sorted(set(range(world_size)) - set(came)), sorted(set(came) - set(answered))
    if absent:
        found = f"{len(absent)} of {world_size} did not connect: {_listed(absent)}"
        fix = "check the output and the firewall of their nodes; host names must not resolve to 127.0.0.1"
        return Check(name="ranks", status="wrong", found=found, fix=fix)
    if silent:
        found = f"{len(silent)} of {world_size} connected but did not respond: {_listed(silent)}"
        return Check(
            name="ranks", status="wrong", found=found, fix="check the output of these ranks, which have ended or hang"
        )
    if world_size == 1:
        fix = "start the doctor with the launcher of the run to check the links between ranks as well"
        return Check(name="ranks", status="not here", found="1 rank", fix=fix)
    return Check(name="ranks", status="ok", found=f"all {world_size} connected")


def _listed(ranks: Sequence[int]) -> str:
    more = len(ranks) - _SHOWN
    return ", ".join(map(str, ranks[:_SHOWN])) + (f" and {more} more" if more > 0 else "")


def check_clocks(hosts: Mapping[int, str]) -> Iterator[Check]:
    """Compare the nodes' clocks with rank 0's. Every rank must call this; the clocks are read after an all-reduce."""
    import torch
    import torch.distributed as dist

    rounds: list[list[float]] = []
    for _ in range(_ROUNDS):
        dist.all_reduce(torch.zeros(1))
        now = torch.tensor([time.time()], dtype=torch.float64)
        of_ranks = [torch.empty_like(now) for _ in hosts]
        dist.all_gather(of_ranks, now)
        rounds.append([(each - of_ranks[0]).item() for each in of_ranks])
    skews = [statistics.median(column) for column in zip(*rounds, strict=True)]
    off = sorted({hosts[rank] for rank, skew in enumerate(skews) if abs(skew) > _MOST_SKEW})
    worst = max(skews, key=abs)
    yield Check(
        name="clocks",
        status="wrong" if off else "ok",
        found=f"at most {1000 * abs(worst):,.1f} ms difference from rank 0's clock"
        + (f": {', '.join(off)}" if off else ""),
        fix="synchronize the clocks of the nodes (chrony, or another NTP client)" if off else "",
    )


def check_shared(
    exchange: RankExchange, first_ranks: Sequence[int], folders: Sequence[Folder], seconds: float
) -> Iterator[Check]:
    """Check that nodes can open each other's files in a folder, and that file locks work between nodes. The first rank
    of each node must call this. Rank 0 creates and locks files, which the other nodes try to open and lock. Rank 0
    yields the results."""
    others = [rank for rank in first_ranks if rank != 0]
    if exchange.place.rank != 0:
        (files,) = exchange.collect("files", [0], seconds).values() or ([],)
        exchange.publish("seen", [_seen(Path(file)) for file in files])
        return
    with ExitStack() as stack:
        files = []
        for folder in folders:
            file = stack.enter_context(tempfile.NamedTemporaryFile(dir=existing_parent(folder.path), prefix=".doctor-"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            files.append(str(Path(file.name).absolute()))
        exchange.publish("files", files)
        seen = exchange.collect("seen", others, seconds)
    for number, folder in enumerate(folders):
        answers = [answer[number] for answer in seen.values()]
        yield _shared(folder, answers, len(others))


_ABSENT, _KEPT_OUT, _LET_IN, _NO_LOCKS = "absent", "kept out", "let in", "no locks"


def _seen(file: Path) -> str:
    """Try to open the file and to lock it. The file is never created, so no file is left behind."""
    try:
        number = os.open(file, os.O_RDWR)
    except OSError:
        return _ABSENT
    with os.fdopen(number, "r+b") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return _KEPT_OUT
        except OSError:
            return _NO_LOCKS
    return _LET_IN


def _shared(folder: Folder, answers: list[str], n_others: int) -> Check:
    name, absent = f"{folder.key}: nodes", answers.count(_ABSENT)
    is_cache = folder.key.startswith("cache_dir")
    if len(answers) < n_others:
        return Check(name=name, status="wrong", found="not all nodes responded", fix="check the output of all nodes")
    if absent and not is_cache:
        found, fix = (
            f"{absent} of {n_others} other nodes cannot open",
            "specify a folder on a file system that all nodes share",
        )
        return Check(name=name, status="wrong", found=f"{found} a file that rank 0 created in this folder", fix=fix)
    if absent:
        return Check(name=name, status="ok", found=f"{absent} of {n_others} other nodes have a separate folder")
    if is_cache and set(answers) != {_KEPT_OUT}:
        defect = "a node can acquire a lock that another node holds" if _LET_IN in answers else "locks do not work"
        fix = f"{LOCK_FIX}, or give each node a cache_dir on its own disk"
        return Check(name=name, status="wrong", found=f"shared, but {defect}", fix=fix)
    return Check(name=name, status="ok", found="shared by all nodes")
