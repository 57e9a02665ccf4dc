"""Check that checkpoints contain only finite numbers. A checkpoint with NaN or infinity is neither saved nor loaded."""

from collections.abc import Mapping
from pathlib import Path

import torch
from composer.utils import dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from data.base.errors import ConfigError
from train.hf.finite import not_finite

_HINT = (
    "use a checkpoint from before the training diverged (if you delete this checkpoint, "
    "autoresume=true uses the previous one)"
)


class NotFiniteError(ConfigError):
    """The weights or the optimizer state of a checkpoint contain NaN or infinity."""

    def __init__(self, checkpoint: Path, tensors: tuple[str, ...]) -> None:
        super().__init__(not_finite(f"checkpoint {checkpoint}", tensors, _HINT))
        self.checkpoint, self.tensors = checkpoint, tensors

    def __reduce__(self) -> tuple[type["NotFiniteError"], tuple[Path, tuple[str, ...]]]:
        return NotFiniteError, (self.checkpoint, self.tensors)


@torch.no_grad()
def keys_not_finite(tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the keys of the tensors that are not finite on some rank. Each rank checks its own shards, and the results
    are gathered. Every rank must call this."""
    locals_ = {key: tensor.to_local() if isinstance(tensor, DTensor) else tensor for key, tensor in tensors.items()}
    numbers = {key: local for key, local in locals_.items() if local.is_floating_point() and local.numel()}
    # One synchronization per device. The devices include the CPU, where the optimizer's step counters are stored.
    ends = [torch.stack(local.aminmax()).isfinite().all().to(local.device, torch.uint8) for local in numbers.values()]
    by_device: dict[torch.device, list[int]] = {}
    for place, end in enumerate(ends):
        by_device.setdefault(end.device, []).append(place)
    mine, keys = set(), list(numbers)
    for places in by_device.values():
        right = torch.stack([ends[place] for place in places]).tolist()
        mine |= {keys[place] for place, finite in zip(places, right, strict=True) if not finite}
    of_all = set[str]().union(*dist.all_gather_object(mine))
    return tuple(key for key in tensors if key in of_all)
