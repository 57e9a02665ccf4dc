"""torch's fused AdamW, for parameters on more than one mesh."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor


class AdamW(torch.optim.AdamW):
    """Updates each parameter group mesh by mesh, because torch's kernel accepts only DTensors of the same mesh in one
    call. The groups themselves are unchanged, because checkpoints refer to them."""

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
