"""Keep the total size of downloaded shards below a limit, by evicting shards that are not needed. The plan defines
which shards the next batches need, so a shard that is needed again in the same epoch is not evicted.

If the limit is too small for the shards that are needed at the same time, an error is raised, because the same shards
would be downloaded repeatedly.
"""

import math
from collections.abc import Mapping

from data.base.errors import ConfigError
from data.base.sizes import format_bytes, parse_bytes
from data.config.loader import DataLoaderConfig
from data.loading.batches import LOOK_AHEAD
from data.loading.rows import Rows
from data.mixing.row_plan import RowPlan

_BEHIND = 1
"""Maximum number of batches by which another rank can be behind this rank. It is only 1, because all ranks have
completed the previous step."""


class ShardCache:
    """The local copies of the shards of a run's remote streams. One process per node uses this class."""

    def __init__(self, streams: Mapping[str, Rows], plan: RowPlan, config: DataLoaderConfig) -> None:
        """Raises ConfigError if cache_limit is less than the total size of the shards that are needed at the same
        time."""
        self._streams = {name: rows for name, rows in streams.items() if rows.is_remote}
        self._plan = plan
        # Number of batches whose shards workers may request before the next call of make_room: the batches that the
        # workers prefetch, and the batches after them for which only the shards are prefetched.
        self._ahead = config.num_workers * config.prefetch_factor + LOOK_AHEAD + 2
        limit = config.dataset.cache_limit
        self._limit = math.inf if limit is None else parse_bytes(limit)
        self._here: dict[tuple[str, int], int] = {}
        """Maps (stream, shard) to the size in bytes of each local shard, least recently needed first."""
        self._logged = {name: rows.mds.n_downloaded() for name, rows in self._streams.items()}
        self._first: int | None = None
        if limit is not None:
            self._check(f"dataset.cache_limit is {limit!r}")

    def make_room(self, batch: int) -> None:
        """Evict shards that are not needed soon, least recently needed first, to stay below the limit."""
        if self._first is None:
            self._first = batch
            for name, rows in self._streams.items():
                mds = rows.mds
                self._here |= {(name, shard): mds.bytes_of(shard) for shard in mds.here()}
        if math.isinf(self._limit):
            return
        alive = self._plan.shards(batch - _BEHIND, batch + self._ahead)
        needed = {(name, shard) for name in self._streams for shard in alive[name].tolist()}
        for name, shard in sorted(needed):
            self._here.pop((name, shard), None)
            self._here[name, shard] = self._streams[name].mds.bytes_of(shard)
        too_much = sum(self._here.values()) - self._limit
        for name, shard in [place for place in self._here if place not in needed]:
            if too_much <= 0:
                break
            self._streams[name].mds.evict(shard)
            too_much -= self._here.pop((name, shard))

    def downloads(self, batch: int) -> dict[str, tuple[int, int]]:
        """For each stream: the number of shards downloaded to this node since the first call of make_room, and the
        number of shards that contain the rows read before the batch, each counted once per epoch."""
        assert self._first is not None
        begun = self._plan.n_shards(self._first, batch)
        return {
            name: (rows.mds.n_downloaded() - self._logged[name], begun[name]) for name, rows in self._streams.items()
        }

    def _check(self, message: str) -> None:
        n_batches = _BEHIND + self._ahead
        needs = {}
        for name, n_shards in self._plan.most_shards(n_batches).items():
            if name in self._streams:
                mds = self._streams[name].mds
                sizes = sorted(map(mds.bytes_of, range(len(mds.shards))), reverse=True)
                needs[name] = sum(sizes[:n_shards])
        if sum(needs.values()) <= self._limit:
            return
        parts = ", ".join(f"{f'{name} ' if name else ''}{format_bytes(need)}" for name, need in needs.items())
        raise ConfigError(
            f"{message}, but {format_bytes(sum(needs.values()))} are needed at the same time for the shards of "
            f"{n_batches} batches ({parts}): increase the limit, write smaller shards, or remove the limit to keep all "
            "shards"
        )
