"""Evicts shards of remote streams when space is needed, and logs how many shards were downloaded."""

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from data.base.console import node_logger
from data.loading.shard_cache import ShardCache


class RemoteShards(Callback):
    """Logs for each remote stream, under streams/NAME/ (or data/ if the stream has no name):

    - `shards_downloaded`: shards downloaded to the node of rank 0 since this start of the run;
    - `shards_needed`: shards that contain the rows read since this start, counted once per epoch of the stream. If the
      cache of a node was empty, the node has downloaded at least this many shards.
    """

    def __init__(self, cache: ShardCache) -> None:
        self.cache = cache

    def fit_start(self, state: State, logger: Logger) -> None:
        self._make_room(state)

    def batch_start(self, state: State, logger: Logger) -> None:
        self._make_room(state)

    def batch_end(self, state: State, logger: Logger) -> None:
        if dist.get_local_rank() != 0:
            return
        metrics = {}
        for name, (downloaded, needed) in self.cache.downloads(state.timestamp.batch.value).items():
            key = f"streams/{name}" if name else "data"
            metrics |= {f"{key}/shards_downloaded": downloaded, f"{key}/shards_needed": needed}
        logger.log_metrics(metrics)

    def fit_end(self, state: State, logger: Logger) -> None:
        if dist.get_local_rank() != 0:
            return  # only local rank 0 manages the cache and counts shards
        for name, (downloaded, needed) in self.cache.downloads(state.timestamp.batch.value).items():
            message = (
                f"{downloaded:,} shards were downloaded; the rows that were read are in {needed:,} shards (counted "
                "once per epoch)"
            )
            node_logger.info(f"{f'stream {name}' if name else 'train'}: {message}")

    def _make_room(self, state: State) -> None:
        # The ranks of a node share the cache folder, which local rank 0 manages.
        if dist.get_local_rank() == 0:
            self.cache.make_room(state.timestamp.batch.value)
