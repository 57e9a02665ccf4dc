"""Functions that damage the files of a checkpoint."""

import dataclasses
import os
import pickle
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from scripts.bench.faults.processes import ROOT

GOLDEN = ROOT / "tests" / "golden"
"""The folder of a run of an earlier version. Its checkpoint contains pickles and has no manifest."""


def flip_bit(file: Path, draw: random.Random, start: int = 0, stop: int | None = None) -> None:
    """Flip a random bit of the bytes [start, stop) of a file."""
    data = bytearray(file.read_bytes())
    data[draw.randrange(start, len(data) if stop is None else stop)] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def flip_tensor(checkpoint: Path, key: Callable[[str], bool], draw: random.Random) -> str:
    """Flip a bit in the middle of a tensor selected by key, and return the name of its file."""
    places = sorted(
        (index.fqn, info.relative_path, info.offset, info.length)
        for index, info in metadata_of(checkpoint).storage_data.items()
        if key(index.fqn)
    )
    _, name, offset, length = draw.choice(places)
    flip_bit(checkpoint / name, draw, offset + length // 2, offset + length // 2 + 4)
    return name


def change_state(checkpoint: Path, key: str, draw: random.Random) -> None:
    """Change a digit in the value of a key in state.json. The file can still be parsed."""
    file = checkpoint / "state.json"
    data = bytearray(file.read_bytes())
    start = data.index(f'"{key}": '.encode()) + len(key) + 4
    digits = [place for place in range(start, min(start + 400, len(data))) if chr(data[place]).isdigit()]
    place = draw.choice(digits[:20])
    data[place] ^= 1
    file.write_bytes(data)


def metadata_of(checkpoint: Path) -> Any:
    from train.checkpoint.storage.unpickle import read_metadata

    return read_metadata((checkpoint / ".metadata").read_bytes(), checkpoint, ".metadata")


def commit_again(checkpoint: Path) -> None:
    """Rewrite the manifest so that it matches the current files, as an attacker would."""
    from train.checkpoint.storage.digests import digest_file
    from train.checkpoint.storage.manifest import MANIFEST, read_manifest, write_manifest

    manifest = read_manifest(checkpoint)
    assert manifest is not None
    files = {path.name: digest_file(path) for path in checkpoint.iterdir() if path.name != MANIFEST}
    write_manifest(checkpoint, dataclasses.replace(manifest, files=files))


class Payload:
    """An object that creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._canary}",)


PAYLOAD = f"{os.system.__module__}.system"
"""The name of the function that a Payload calls, as it appears in error messages."""


def plant_in_metadata(checkpoint: Path, canary: Path) -> None:
    metadata = metadata_of(checkpoint)
    metadata.planner_data = Payload(canary)
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))


def plant_in_item(checkpoint: Path, path: Iterable[Any], canary: Path) -> None:
    """In a checkpoint of an earlier version, replace the first pickled value whose path in the checkpoint's state
    starts with `path`."""
    import io

    import torch

    metadata, path = metadata_of(checkpoint), tuple(path)
    keys = [key for key, its_path in metadata.planner_data.items() if its_path[: len(path)] == path]
    places = {index: info for index, info in metadata.storage_data.items() if index.fqn in keys}
    index, info = next((index, info) for index, info in places.items())
    buffer = io.BytesIO()
    torch.save(Payload(canary), buffer)
    file = checkpoint / info.relative_path
    offset = file.stat().st_size
    with file.open("ab") as opened:
        opened.write(buffer.getvalue())
    metadata.storage_data[index] = dataclasses.replace(info, offset=offset, length=len(buffer.getvalue()))
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))


def write_planted_file(file: Path, canary: Path) -> None:
    """Write a checkpoint as a single file, in the format of earlier versions."""
    import torch

    torch.save({"state": {"model": {"model.x": torch.zeros(2)}, "callbacks": Payload(canary)}, "rng": []}, file)
