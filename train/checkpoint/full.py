"""Single-file checkpoints of earlier versions. They can be read, but are no longer written."""

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
    """The memory-mapped tensors and values of a single-file checkpoint. The file is not verified, because it contains
    no hashes.

    Every read raises CorruptCheckpointError if the file is corrupt.
    """

    manifest = None

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    @cached_property
    def content(self) -> dict[str, Any]:
        # The file is memory-mapped, so that its weights and optimizer moments are read only when they are needed.
        content = load_values(str(self.checkpoint), self.checkpoint, self.checkpoint.name, mmap=True)
        if not isinstance(content, dict) or not isinstance(content.get("state"), dict):
            raise CorruptCheckpointError(self.checkpoint, self.checkpoint.name, "contains no state")
        return content

    @cached_property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """All tensors by key. The keys are the same as in a checkpoint folder."""
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
        """The (parameter, key) pair of each tensor in the optimizer's state."""
        prefix = f"state.optimizers.{optimizer}.state.model."
        for key in self.tensors:
            if key.startswith(prefix):
                name, _, what = key.removeprefix(prefix).rpartition(".")
                yield name, what

    @property
    def tensor_keys(self) -> list[str]:
        """Keys of the weights and of the optimizer's state."""
        return [*self.tensors]

    def rows_of(self, key: str, start: int, stop: int, out: torch.Tensor) -> None:
        """Read rows [start, stop) of a tensor into `out`. A scalar counts as one row."""
        whole = self.tensors[key]
        out.copy_((whole if whole.dim() else whole.view(1))[start:stop])

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fill the tensors in place. For a DTensor, only this rank's shard is filled. Raises ConfigError if a tensor is
        missing or its shape differs."""
        for key, out in tensors.items():
            whole = self.tensors.get(key)
            if whole is None or whole.shape != out.shape:
                shape = "is missing" if whole is None else f"is {list(whole.shape)}, not {list(out.shape)}"
                raise ConfigError(f"{self.checkpoint} does not match the model of this config: {key} {shape}")
            with torch.no_grad():
                if isinstance(out, DTensor):
                    shape, offsets = compute_local_shape_and_global_offset(out.shape, out.device_mesh, out.placements)
                    part = whole[tuple(slice(start, start + n) for start, n in zip(offsets, shape, strict=True))]
                    out.to_local().copy_(part)
                else:
                    out.copy_(whole)
