"""Checks that the config, the source code, the package versions and the training rows are the same on all ranks.
Otherwise, a rank could train a different model, or wait in a collective that the other ranks do not call.

Ranks exchange these facts through the rendezvous store before the process group is created, because ranks that differ
may be unable to create a process group.
"""

import hashlib
import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import yaml
from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

from data.base.errors import ConfigError, note_shown_elsewhere, yaml_of
from data.base.versions import versions
from data.config.sections import leaves
from train.config.redaction import masked_yaml
from train.config.schema import TrainConfig

_WHERE_DATA_LIES = ("hf_name", "hf_kwargs.data_dir", "hf_kwargs.data_files*", "local", "text")
MAY_DIFFER = (
    # These keys depend on the node's disks. They affect neither the rows nor the checkpoints.
    "*_loader.dataset.cache_dir",
    "*_loader.dataset.cache_limit",
    "*_loader.dataset.max_prepare_bytes",
    # These keys specify where the data is stored on a node. The rows are compared instead.
    *(f"*_loader.dataset.{place}{key}" for place in ("", "streams.*.") for key in _WHERE_DATA_LIES),
    "tokenizer.kwargs.vocab_file",
    # These keys depend on the node's processors. They do not affect the order of rows.
    "*_loader.dataset.prepare_workers",
    "*_loader.num_workers",
    "*_loader.prefetch_factor",
    "*_loader.persistent_workers",
    "*_loader.pin_memory",
)
"""Patterns of keys that may differ between nodes. All other keys must be the same on every rank."""

_ROOT = Path(__file__).resolve().parents[2]
_MOST_GROUPS, _MOST_LINES, _LONGEST = 4, 20, 80
"""Limits: the number of groups of ranks that are compared, the number of differences that are listed, and the number of
characters of a value that are shown."""
_POLL_SECONDS, _COMPARED_SECONDS = 0.05, 10.0
"""When ranks differ, rank 0 checks at this interval, and for at most this time, whether the other ranks have read the
differences. Rank 0 waits because its process serves the store from which the other ranks read."""


def facts_of_start(config: TrainConfig, device: str, fingerprints: Mapping[str, str]) -> dict[str, str]:
    """The facts that must be the same on all ranks: the config with secrets masked, the fingerprint of each stream's
    rows, the type of device, package versions, and a hash of each source file."""
    values = yaml.safe_load(masked_yaml(config))
    facts = {key: yaml_of(value) for key, value in leaves(values) if not _may_differ(key)}
    facts |= {f"rows of {name}": fingerprint for name, fingerprint in fingerprints.items()}
    facts |= {f"version of {name}": version for name, version in versions().items()}
    return facts | {"kind of device": device} | _source_files(_ROOT)


def _may_differ(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in MAY_DIFFER)


def announce(store: Store, facts: Mapping[str, str], rank: int) -> None:
    """Publish a digest of this rank's facts. Must be called before check_agreement."""
    store.set(f"facts of rank {rank}", f"{_digest(facts)} {platform.node()}")


def check_agreement(store: Store, facts: Mapping[str, str], rank: int, world_size: int) -> None:
    """Raise the same ConfigError on every rank if the ranks have announced different facts. Only rank 0 shows the
    error. Every rank must call this function, after all ranks have called announce.

    The facts themselves (about 30 kB) are exchanged only if digests differ. The first rank with each digest publishes
    its facts.
    """
    announced = store.multi_get([f"facts of rank {each}" for each in range(world_size)])  # pyright: ignore[reportAttributeAccessIssue]: torch's stubs lack it
    digests, nodes = zip(*(text.decode().split(" ", 1) for text in announced), strict=True)
    groups: dict[str, list[int]] = {}
    for each, digest in enumerate(digests):
        groups.setdefault(digest, []).append(each)
    if len(groups) == 1:
        return
    if groups[digests[rank]][0] == rank:
        store.set(f"facts {digests[rank]}", json.dumps(facts))
    compared = list(groups)[:_MOST_GROUPS]
    names = [_named(groups[digest], nodes) for digest in compared]
    lines = list(_differences([json.loads(store.get(f"facts {digest}")) for digest in compared], names))
    _wait_for_others(store, rank, world_size)
    more = [f"and {len(lines) - _MOST_LINES} more"] if len(lines) > _MOST_LINES else []
    fix = "start every node with the same command, source code, packages and data"
    error = ConfigError("\n  ".join([f"the ranks differ: {fix}", *lines[:_MOST_LINES], *more]))
    if rank != 0:
        note_shown_elsewhere(error)
    raise error


def _wait_for_others(store: Store, rank: int, world_size: int) -> None:
    """On rank 0, wait until all other ranks have read the facts from the store, because rank 0 serves the store."""
    compared, end = store.add("compared", 1), time.monotonic() + _COMPARED_SECONDS
    while rank == 0 and compared < world_size and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
        compared = store.add("compared", 0)


def _differences(facts: Sequence[Mapping[str, str]], names: Sequence[str]) -> Iterator[str]:
    for key in dict.fromkeys(key for each in facts for key in each):
        where: dict[str, list[str]] = {}
        for each, name in zip(facts, names, strict=True):
            where.setdefault(each.get(key, "absent"), []).append(name)
        if len(where) > 1:
            yield f"{key} is " + ", but ".join(
                f"{_truncated(value)} on {' and '.join(on)}" for value, on in where.items()
            )


def _truncated(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}..."


def _named(ranks: Sequence[int], nodes: Sequence[str]) -> str:
    """Ranks and their nodes as text: `ranks 8-15 (gpu04)`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][-1] == rank - 1:
            runs[-1] = [runs[-1][0], rank]
        else:
            runs.append([rank])
    numbers = ", ".join("-".join(map(str, run)) for run in runs)
    hosts = list(dict.fromkeys(nodes[rank] for rank in ranks))
    others = f" and {len(hosts) - 1} other nodes" if len(hosts) > 1 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {numbers} ({hosts[0]}{others})"


def _source_files(root: Path) -> dict[str, str]:
    """The hash of each file of train and data, by path."""
    paths = sorted(path for package in ("train", "data") for path in (root / package).rglob("*.py"))
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in paths}


def _digest(facts: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
