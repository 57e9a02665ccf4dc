"""Pickles of a checkpoint, read without running code: a name outside of fixed lists is refused, and named."""

import datetime
import io
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.core.multiarray import _reconstruct  # pyright: ignore[reportAttributeAccessIssue]: its place in all numpys
from torch.distributed.checkpoint import filesystem, metadata
from torch.torch_version import TorchVersion

from train.checkpoint.storage.manifest import CorruptCheckpointError

_METADATA = {
    "torch": ("Size",),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
    "collections": ("OrderedDict",),
    # The folder that torch wrote to, which is not looked at. From Python 3.13 on it is pickled with a place of its own.
    "pathlib": ("PosixPath", "PurePosixPath"),
    "pathlib._local": ("PosixPath", "PurePosixPath"),
}
"""Module -> what torch's `.metadata` may name in it, besides torch's dtypes."""

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
"""What torch.load(weights_only=True) does not take by itself: the random state of numpy, lengths of time, versions."""

_REFUSED = re.compile(r"GLOBAL ([\w.]+)")
"""How torch's errors name what they do not allow."""


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in _METADATA.get(module, ()):
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"names {module}.{name}, which is no part of a checkpoint: it was not run")


def read_metadata(data: bytes, checkpoint: Path, name: str) -> metadata.Metadata:
    """torch's index of a sharded checkpoint. Raises CorruptCheckpointError."""
    try:
        found = _MetadataUnpickler(io.BytesIO(data)).load()
        if not isinstance(found, metadata.Metadata):
            raise TypeError(f"it holds {type(found).__name__}")
        _check(found)
    except Exception as error:  # a damaged pickle raises almost anything
        raise CorruptCheckpointError(checkpoint, name, _defect(error)) from None
    return found


def _check(found: metadata.Metadata) -> None:
    """That what readers rely on is there, with its types."""
    stored = found.state_dict_metadata
    kinds = metadata.TensorStorageMetadata | metadata.BytesStorageMetadata
    if not isinstance(stored, dict) or not all(isinstance(value, kinds) for value in stored.values()):
        raise TypeError("it lists no tensors")
    if not isinstance(found.storage_data, dict) or not all(
        isinstance(info, filesystem._StorageInfo) and isinstance(info.relative_path, str)
        for info in found.storage_data.values()
    ):
        raise TypeError("it does not say where tensors are")


def load_values(source: Any, checkpoint: Path, name: str, **kwargs: Any) -> Any:
    """What torch.save wrote: tensors, numbers, texts, and containers of them. Raises CorruptCheckpointError."""
    try:
        with torch.serialization.safe_globals(_VALUES):
            return torch.load(source, map_location="cpu", weights_only=True, **kwargs)
    except Exception as error:  # as above
        raise CorruptCheckpointError(checkpoint, name, _defect(error)) from None


def _defect(error: Exception) -> str:
    text = str(error)
    if text.startswith("names "):
        return text
    if isinstance(error, pickle.UnpicklingError) and (found := _REFUSED.search(text)):
        return f"names {found[1]}, which is no part of a checkpoint: it was not run"
    return f"cannot be read: {text.splitlines()[0] if text else type(error).__name__}"
