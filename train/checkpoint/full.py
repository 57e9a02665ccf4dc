"""Checkpoints of a single file, which were written before all checkpoints were folders. They are read, not written."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from data.base.errors import ConfigError
from train.checkpoint.storage.manifest import CorruptCheckpointError
from train.checkpoint.storage.unpickle import load_values


class FullCheckpoint:
    """Its tensors and values, mapped into memory. There are no hashes to compare it with.

    What is read raises CorruptCheckpointError.
    """

    manifest = None

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    @cached_property
    def content(self) -> dict[str, Any]:
        # Mapped, not read: weights and moments are in the same file.
        content = load_values(str(self.checkpoint), self.checkpoint, self.checkpoint.name, mmap=True)
        if not isinstance(content, dict) or not isinstance(content.get("state"), dict):
            raise CorruptCheckpointError(self.checkpoint, self.checkpoint.name, "holds no state")
        return content

    @cached_property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Under the keys that they have in a folder."""
        state = self.content["state"]
        try:
            found = {f"state.model.{name}": value for name, value in state["model"].items()}
            for optimizer, saved in state.get("optimizers", {}).items():
                for param, values in saved["state"].items():
                    for key, value in values.items():
                        found[f"state.optimizers.{optimizer}.state.{param}.{key}"] = value
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptCheckpointError(self.checkpoint, self.checkpoint.name, f"lacks {error!r}") from None
        return {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}

    def describe(self, key: str) -> tuple[tuple[int, ...], torch.dtype]:
        """The shape and the dtype of a tensor."""
        return tuple(self.tensors[key].shape), self.tensors[key].dtype

    def optimizer_keys(self, optimizer: str) -> Iterator[tuple[str, str]]:
        """(parameter, key) of each tensor of the optimizer's state."""
        prefix = f"state.optimizers.{optimizer}.state.model."
        for key in self.tensors:
            if key.startswith(prefix):
                name, _, what = key.removeprefix(prefix).rpartition(".")
                yield name, what

    @property
    def tensor_keys(self) -> list[str]:
        """Of weights and of the optimizer's state."""
        return [*self.tensors]

    def rows_of(self, key: str, start: int, stop: int, out: torch.Tensor) -> None:
        """Reads rows [start, stop) of a tensor into `out`; a scalar is one row."""
        whole = self.tensors[key]
        out.copy_((whole if whole.dim() else whole.view(1))[start:stop])

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fills the tensors, or this rank's parts of them. Raises ConfigError when they have other shapes."""
        for key, out in tensors.items():
            whole = self.tensors.get(key)
            if whole is None or whole.shape != out.shape:
                shape = "is missing" if whole is None else f"is {list(whole.shape)}, not {list(out.shape)}"
                raise ConfigError(f"{self.checkpoint} does not hold the model of this config: {key} {shape}")
            with torch.no_grad():
                if isinstance(out, DTensor):
                    shape, offsets = compute_local_shape_and_global_offset(out.shape, out.device_mesh, out.placements)
                    part = whole[tuple(slice(start, start + n) for start, n in zip(offsets, shape, strict=True))]
                    out.to_local().copy_(part)
                else:
                    out.copy_(whole)
