"""Small MDS folders for tests of their readers."""

import json
from pathlib import Path

from streaming import MDSWriter

from data.mds.folder import MdsFolder


def write_mds(folder: Path, columns: dict[str, str], samples: list[dict], *, hashes=("xxh64",), **kwargs) -> Path:
    """Write an MDS folder with several samples per shard."""
    settings = {"size_limit": 1000, "hashes": list(hashes)} | kwargs
    with MDSWriter(columns=columns, out=str(folder), **settings) as writer:
        for sample in samples:
            writer.write(sample)
    return folder


def write_texts(folder: Path, n: int = 60, **kwargs) -> Path:
    return write_mds(folder, {"text": "str"}, texts(n), **kwargs)


def texts(n: int = 60) -> list[dict]:
    return [{"text": f"{i} " * 20} for i in range(n)]


def edit_index(folder: Path, edit) -> None:
    """Let edit(index) change the index in place."""
    index = json.loads((folder / "index.json").read_text())
    edit(index)
    (folder / "index.json").write_text(json.dumps(index))


def open_folder(folder: Path | str, *, to: Path | None = None, split: str | None = None) -> MdsFolder:
    """to: where the shards of a remote folder are downloaded."""
    if to is None:
        return MdsFolder.open(local=str(folder), remote=None, split=split, cache_dir="")
    return MdsFolder.open(local=str(to), remote=str(folder), split=split, cache_dir="")


def read_all(mds: MdsFolder) -> list[dict]:
    return [mds.read(sample) for sample in range(mds.n_samples)]


def shorten_waits(monkeypatch):
    """Shorten waits and deadlines of downloads."""
    monkeypatch.setattr("data.mds.remote.fetch.WAITS", (0.01, 0.01))
    monkeypatch.setattr("data.mds.remote.deadlines.QUIET", 5)
    monkeypatch.setattr("data.mds.remote.deadlines._POLL", 0.01)
