"""torch's fused AdamW, for parameters that are sharded over more than one device mesh."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor


class AdamW(torch.optim.AdamW):
    """Updates the parameters of each group separately for each device mesh, because torch's kernel requires all
    DTensors of a call to be on the same mesh. The groups themselves are unchanged, because checkpoints refer to
    them."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        groups = self.param_groups
        self.param_groups = [{**group, "params": params} for group in groups for params in _by_mesh(group["params"])]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups


def _by_mesh(params: list[Tensor]) -> list[list[Tensor]]:
    found: dict[DeviceMesh | None, list[Tensor]] = {}
    for param in params:
        found.setdefault(param.device_mesh if isinstance(param, DTensor) else None, []).append(param)
    return list(found.values())
