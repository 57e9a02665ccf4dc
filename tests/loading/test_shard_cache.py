"""Downloaded shards of a remote stream stay below the limit, and are downloaded once per epoch."""

import numpy as np
import pytest

from data.base.durations import Clock
from data.base.errors import ConfigError
from data.base.sizes import format_bytes, parse_bytes
from data.config.dataset import DatasetConfig, StreamConfig
from data.config.loader import DataLoaderConfig, StageConfig
from data.loading.loader import train_loader
from data.loading.opening import open_streams
from data.loading.shard_cache import ShardCache
from data.mixing.row_plan import RowPlan
from tests.helpers.mds_folders import write_mds
from tests.helpers.toy_tokenizer import ToyTokenizer

TOY = ToyTokenizer()
N_ROWS, N_SHARDS = 640, 64


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "remote"
    rows = [{"tokens": np.full(8, 1 + n % 100, dtype=np.int32)} for n in range(N_ROWS)]
    # Of a size with which ten rows are a shard.
    write_mds(folder, {"tokens": "ndarray:int32"}, rows, size_limit=620)
    return folder


def opened(remote, local, limit, *, num_workers=0, n_batches=700, stages=(), streams=None):
    """Streams, plan and config of a run with two rows per batch."""
    dataset = DatasetConfig(
        streams=streams or {"web": StreamConfig(remote=str(remote), local=str(local), max_repeats=9)},
        max_seq_len=8,
        cache_limit=limit,
    )
    config = DataLoaderConfig(name="text", dataset=dataset, num_workers=num_workers, stages=list(stages))
    there = open_streams(dataset, TOY)
    clock = Clock(tokens_per_batch=16, rows_per_batch=2, rows_per_epoch=N_ROWS).until(f"{n_batches}ba")
    return there, RowPlan(config, there, clock, seed=3), config


def train(there, plan, config, cache, first=0, n_batches=700):
    """The tokens of each batch, and the bytes of the local shards after it."""
    loader = train_loader(there, config, plan, n_batches=n_batches, rank=0, world_size=1, pad_token_id=0)
    loader.dataset.first = first
    folder = there["web"].folder
    tokens, n_bytes = [], []
    cache.make_room(first)
    for n, batch in enumerate(loader, start=first):
        cache.make_room(n)
        tokens.append(batch["input_ids"][:, 0].tolist())
        n_bytes.append(sum(file.stat().st_size for file in folder.glob("*.mds")))
    return tokens, n_bytes


def shard_bytes(remote):
    return max(file.stat().st_size for file in remote.glob("*.mds"))


def test_the_fixture_is_what_it_says(remote):
    assert len(list(remote.glob("*.mds"))) == N_SHARDS


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_shards_stay_below_the_limit_and_are_downloaded_once_per_epoch(remote, tmp_path, num_workers):
    limit = 16 * shard_bytes(remote)
    there, plan, config = opened(remote, tmp_path / "few", limit, num_workers=num_workers)
    cache = ShardCache(there, plan, config)
    tokens, n_bytes = train(there, plan, config, cache)
    everything, *rest = opened(remote, tmp_path / "all", None)
    assert tokens == train(everything, *rest, ShardCache(everything, *rest))[0]
    assert max(n_bytes) <= limit
    assert max(n_bytes) > limit // 2
    downloaded, needed = cache.downloads(700)["web"]
    assert needed == 2 * N_SHARDS + 16
    # At most once per epoch, except for the window that is prefetched.
    assert needed - 16 <= downloaded <= needed + 8


def test_without_a_limit_everything_is_kept_and_downloaded_once(remote, tmp_path):
    there, plan, config = opened(remote, tmp_path / "local", None)
    cache = ShardCache(there, plan, config)
    train(there, plan, config, cache)
    # The first came when the stream was opened.
    assert cache.downloads(700)["web"] == (N_SHARDS - 1, 2 * N_SHARDS + 16)


def test_local_shards_are_evicted_when_a_run_resumes(remote, tmp_path):
    there, plan, config = opened(remote, tmp_path / "local", None)
    train(there, plan, config, ShardCache(there, plan, config))
    limit = 16 * shard_bytes(remote)
    there, plan, config = opened(remote, tmp_path / "local", limit)
    cache = ShardCache(there, plan, config)
    _, n_bytes = train(there, plan, config, cache, first=200, n_batches=400)
    assert max(n_bytes) <= limit
    assert cache.downloads(400)["web"][0] > 0


def test_a_cache_limit_below_the_needed_shards_is_refused(remote, tmp_path):
    with pytest.raises(ConfigError) as error:
        ShardCache(*opened(remote, tmp_path / "local", "8kb"))
    message = str(error.value)
    assert message.startswith("dataset.cache_limit is '8kb', but ")
    # What it asks for is enough.
    ShardCache(*opened(remote, tmp_path / "local", message.partition("but ")[2].split()[0]))


def test_a_stream_without_a_share_needs_no_room(remote, tmp_path):
    streams = {
        name: StreamConfig(remote=str(remote), local=str(tmp_path / name), max_repeats=9) for name in ("web", "code")
    }
    alone = [StageConfig(name="all", proportions={"web": 1.0})]
    both = [StageConfig(name="all", proportions={"web": 0.5, "code": 0.5})]
    limit = 17 * shard_bytes(remote)
    ShardCache(*opened(remote, None, limit, streams=streams, stages=alone))
    with pytest.raises(ConfigError, match=r"web .*, code "):
        ShardCache(*opened(remote, None, limit, streams=streams, stages=both))


@pytest.mark.parametrize(
    ("size", "n_bytes"), [(5, 5), ("5", 5), ("7b", 7), ("2kb", 2048), ("1.5 MB", 3 << 19), ("100gb", 100 << 30)]
)
def test_sizes(size, n_bytes):
    assert parse_bytes(size) == n_bytes
    assert n_bytes <= parse_bytes(format_bytes(n_bytes)) <= n_bytes * 1.01 + 1


@pytest.mark.parametrize("limit", ["", "many", "-5gb", "0", "5xb", 0])
def test_invalid_sizes_are_refused(limit):
    with pytest.raises(ValueError, match=r"cache_limit is .*, but it must be a positive number of bytes"):
        DatasetConfig(remote="s3://b/x", max_seq_len=8, cache_limit=limit)


def test_a_limit_without_a_remote_is_refused():
    with pytest.raises(ValueError, match="but no source is remote"):
        DatasetConfig(local="/mds", max_seq_len=8, cache_limit="5gb")
