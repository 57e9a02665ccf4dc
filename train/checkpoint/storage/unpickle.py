"""Read the pickles of a checkpoint without executing code. Only the names in fixed lists are accepted; other names are
refused and reported."""

import datetime
import gc
import io
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.core.multiarray import _reconstruct  # pyright: ignore[reportAttributeAccessIssue]: exists in all versions of numpy
from torch.distributed.checkpoint import filesystem, metadata
from torch.torch_version import TorchVersion

from train.checkpoint.storage.manifest import CorruptCheckpointError

_INDEX_TYPES = (
    metadata.BytesStorageMetadata,
    metadata.ChunkStorageMetadata,
    metadata.Metadata,
    metadata.MetadataIndex,
    metadata.StorageMeta,
    metadata.TensorProperties,
    metadata.TensorStorageMetadata,
    filesystem._StorageInfo,
    filesystem._StoragePrefix,
)
"""The types of the objects in torch's `.metadata`, except sizes and dtypes."""
_PATHS = ("pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath", "pathlib._local.PurePosixPath")
"""Types of the path in `.metadata`: the folder that torch wrote to. The path itself is not used."""

_VALUES: list[Any] = [
    datetime.timedelta,
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
    OrderedDict,
    TorchVersion,
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
]
"""Types that torch.load(weights_only=True) does not accept by default: numpy's random state, timedeltas, versions."""

_REFUSED = re.compile(r"GLOBAL ([\w.]+)")
"""Finds the name of the refused global in an error message of torch."""


class _MetadataUnpickler(pickle.Unpickler):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        # A pickle can set attributes of any object that it can access, so functions and paths are replaced with
        # placeholders.
        self._allowed: dict[str, Any] = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in _INDEX_TYPES}
        self._allowed |= dict.fromkeys(_PATHS, type("Path", (), {"__init__": lambda self, *parts: None}))
        self._allowed |= {
            "torch.Size": torch.Size,
            "collections.OrderedDict": OrderedDict,
            "torch.serialization._get_layout": lambda name: torch.serialization._get_layout(name),
            "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING": lambda n: metadata._MEM_FORMAT_ENCODING(n),
        }

    def find_class(self, module: str, name: str) -> Any:
        if (found := self._allowed.get(f"{module}.{name}")) is not None:
            return found
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(
            f"refers to {module}.{name}, which does not belong in a checkpoint: the code was not executed"
        )


@contextmanager
def _types_kept() -> Iterator[None]:
    """Restore torch's types at the end. Raises UnpicklingError if the pickle has changed a type."""
    before = {kind: dict(vars(kind)) for kind in _INDEX_TYPES}
    collecting = gc.isenabled()
    gc.disable()  # otherwise, the garbage collector would repeatedly scan hundreds of thousands of objects
    try:
        yield
    finally:
        if collecting:
            gc.enable()
        changed = [kind for kind, attributes in before.items() if _restore(kind, attributes)]
    if changed:
        raise pickle.UnpicklingError(
            f"changes the type {changed[0].__qualname__} when it is loaded: the change was undone"
        )


def _restore(kind: type, attributes: Mapping[str, Any]) -> bool:
    now = dict(vars(kind))
    for name in now.keys() - attributes.keys():
        delattr(kind, name)
    different = [name for name, value in attributes.items() if now.get(name, _ABSENT) is not value]
    for name in different:
        setattr(kind, name, attributes[name])
    return bool(different or now.keys() - attributes.keys())


_ABSENT = object()


def read_metadata(data: bytes, checkpoint: Path, name: str) -> metadata.Metadata:
    """Unpickle torch's index of a sharded checkpoint. Raises CorruptCheckpointError."""
    try:
        with _types_kept():
            found = _MetadataUnpickler(data).load()
        if not isinstance(found, metadata.Metadata):
            raise TypeError(f"it contains an object of type {type(found).__name__}")
        _check(found)
        found.storage_meta = None  # this field contains the placeholder that replaces a path
    except Exception as error:  # a damaged pickle can raise almost any exception
        raise CorruptCheckpointError(checkpoint, name, _defect(error)) from None
    return found


def _check(found: metadata.Metadata) -> None:
    """Check the types of the fields that readers use. Raises TypeError."""
    stored = found.state_dict_metadata
    if not isinstance(stored, dict) or not isinstance(found.storage_data, dict):
        raise TypeError("it lists no tensors")
    for key, value in stored.items():
        if isinstance(value, metadata.BytesStorageMetadata):
            continue
        if not isinstance(value, metadata.TensorStorageMetadata) or not isinstance(value.size, torch.Size):
            raise TypeError(f"{key!r} is not a tensor")
        if not isinstance(value.properties.dtype, torch.dtype) or not isinstance(value.chunks, list):
            raise TypeError(f"{key!r} has no chunks")
        for chunk in value.chunks:
            sizes = (chunk.offsets, chunk.sizes) if isinstance(chunk, metadata.ChunkStorageMetadata) else (None,)
            if not all(isinstance(size, torch.Size) and len(size) == len(value.size) for size in sizes):
                raise TypeError(f"{key!r} has a chunk without offsets and sizes")
    for info in found.storage_data.values():
        numbers = (info.offset, info.length) if isinstance(info, filesystem._StorageInfo) else (None,)
        is_place = all(isinstance(number, int) and number >= 0 for number in numbers)
        if not is_place or not isinstance(info.relative_path, str):
            raise TypeError("it does not contain a valid location for each tensor")


def load_values(source: Any, checkpoint: Path, name: str, **kwargs: Any) -> Any:
    """Load data that torch.save wrote: tensors, numbers, strings, and containers of these. Raises
    CorruptCheckpointError."""
    try:
        with torch.serialization.safe_globals(_VALUES):
            return torch.load(source, map_location="cpu", weights_only=True, **kwargs)
    except Exception as error:  # any exception, as in read_metadata
        raise CorruptCheckpointError(checkpoint, name, _defect(error)) from None


def _defect(error: Exception) -> str:
    text = str(error)
    if text.startswith(("refers to ", "changes ")):
        return text
    if isinstance(error, pickle.UnpicklingError) and (found := _REFUSED.search(text)):
        return f"refers to {found[1]}, which does not belong in a checkpoint: the code was not executed"
    return f"cannot be read: {text.splitlines()[0] if text else type(error).__name__}"
