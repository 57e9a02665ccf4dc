"""Optimizers that neither torch nor Composer provides."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class DecoupledLionW(torch.optim.Optimizer):
    """Lion (Chen et al. 2023): the update is the sign of an interpolated momentum. As in Composer's decoupled
    optimizers (such as DecoupledAdamW), weight decay does not depend on the peak learning rate: each step multiplies
    the weights by 1 - weight_decay * lr / initial_lr."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        for group in self.param_groups:
            group["initial_lr"] = group["lr"]

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            params = [param for param in group["params"] if param.grad is not None]
            if not params:
                continue
            # Each rank updates its own shards, because torch has no foreach lerp or sign for DTensors.
            grads = [_local(param.grad) for param in params if param.grad is not None]
            moments = [_local(self._moment(param)) for param in params]
            params = [_local(param) for param in params]
            decay = group["weight_decay"] * group["lr"] / group["initial_lr"]
            if decay:
                torch._foreach_mul_(params, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]
            updates = torch._foreach_lerp(moments, grads, 1 - beta1)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_sign_(updates)  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_add_(params, updates, alpha=-group["lr"])  # pyright: ignore[reportPrivateImportUsage]
            torch._foreach_lerp_(moments, grads, 1 - beta2)  # pyright: ignore[reportPrivateImportUsage]
        return loss

    def _moment(self, param: Tensor) -> Tensor:
        state = self.state[param]
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(param)
        return state["exp_avg"]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
