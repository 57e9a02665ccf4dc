"""The results of a verification as text."""

from data.loading.verify import Verification


def verification_lines(found: Verification) -> list[str]:
    lines = [
        f"{found.folder}: {found.n_shards:,} shards, {found.n_samples:,} samples, {len(found.broken)} shards corrupt"
    ]
    if found.unhashed:
        lines.append(f"  {found.unhashed} shards have no hash in the index: only their sizes and headers were checked")
    return lines + [f"  {shard.file}, samples {shard.first} to {shard.last}: {shard.why}" for shard in found.broken]
