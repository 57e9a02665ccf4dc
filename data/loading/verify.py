"""Read all shards of a folder, and list those that are missing, truncated or corrupt."""

from dataclasses import dataclass
from pathlib import Path

from data.base.errors import DataError
from data.loading.rows import Rows
from data.mds.folder import MdsFolder


@dataclass(frozen=True)
class BrokenShard:
    file: str
    first: int
    last: int
    """Indices of the shard's first and last sample, counted from 0 over the whole folder."""
    why: str


@dataclass(frozen=True)
class Verification:
    folder: str
    n_shards: int
    n_samples: int
    unhashed: int
    """Number of shards for which the index has no hash, so that only their size and header were checked."""
    broken: list[BrokenShard]


def verify(source: Rows | MdsFolder | Path) -> Verification:
    """Read every shard, even shards that were checked before. Shards that are not local are fetched from the remote.

    Raises ConfigError or DataError if the index is missing or invalid.
    """
    if isinstance(source, Path):
        source = MdsFolder.open(local=str(source), remote=None, split=None, cache_dir="")
    mds = source.mds if isinstance(source, Rows) else source
    broken = []
    for number, end in enumerate(mds.ends.tolist()):
        why = _broken(mds, number)
        if why is not None:
            name = mds.shards[number].raw_data.basename
            broken.append(BrokenShard(name, end - mds.shards[number].samples, end - 1, why))
    unhashed = sum(not shard.raw_data.hashes for shard in mds.shards)
    return Verification(mds.name, len(mds.shards), mds.n_samples, unhashed, broken)


def _broken(mds: MdsFolder, number: int) -> str | None:
    if mds.file(number).exists():
        return mds.defect(number)
    try:
        mds.ensure(number)
    except DataError as error:
        return str(error)
    return None
