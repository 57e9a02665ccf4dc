"""Values of a step that all ranks need before the optimizer step, computed with one reduction."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from composer.core import State
from composer.utils import dist
from torch import Tensor, nn

from train.distributed.clipping import squared_norms, total_norm
from train.expert_health.routing import RoutingSums
from train.models.dbrx import DbrxOutput


@dataclass(frozen=True, kw_only=True, eq=False)
class StepValues:
    """Values of the whole step, the same on every rank."""

    loss: float
    """The loss that Composer logs, but summed in fp64."""
    gradient_norm: float
    """L2 norm of all gradients before clipping."""
    squares_P: Sequence[float]
    """The squared L2 norm of each parameter's gradient."""
    routing: RoutingSums

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite([self.loss, self.gradient_norm]).all())


class StepMeasurement:
    """Sums values over the microbatches of a step on this rank without synchronizing with the device."""

    def __init__(self) -> None:
        self._rows = 0
        self._sums: Tensor | None = None
        """The loss, then z_sums_L, logit_squares_L and counts_LE of DbrxOutput, in fp64."""
        self._shape_LE = torch.Size()

    def begin(self, n_rows: int) -> None:
        """Start a step. n_rows: rows of this rank's batch."""
        self._rows, self._sums = n_rows, None

    def add(self, state: State) -> None:
        """Add a microbatch. Call this after its loss and before its backward pass, in which Composer scales the loss in
        place."""
        assert isinstance(state.outputs, DbrxOutput)
        assert isinstance(state.loss, dict)
        share, out = state.batch["input_ids"].shape[0] / self._rows, state.outputs
        loss = state.loss["total"].detach().double() * share
        routed = (out.z_sums_L.detach(), out.logit_squares_L, out.counts_LE.flatten())
        sums = torch.cat((loss.view(1), *(each.double() for each in routed)))
        self._sums, self._shape_LE = sums if self._sums is None else self._sums + sums, out.counts_LE.shape

    @property
    def loss(self) -> float:
        """This rank's part of the loss. The mean over the ranks is the loss of the step."""
        assert self._sums is not None
        return self._sums[0].item()

    def reduce(self, params: Sequence[nn.Parameter], top_k: int) -> StepValues:
        """Return the values of the step, reduced over all ranks. Every rank must call this. top_k: active experts per
        token."""
        assert self._sums is not None
        sums = torch.cat((self._sums, squared_norms(params).to(self._sums.device)))
        dist.all_reduce(sums)
        L, E = self._shape_LE
        loss, z_sums_L, logit_squares_L, counts, squares_P = np.split(sums.cpu().numpy(), np.cumsum([1, L, L, L * E]))
        routing = RoutingSums(
            counts_LE=counts.reshape(L, E), z_sums_L=z_sums_L, logit_squares_L=logit_squares_L, top_k=top_k
        )
        return StepValues(
            loss=loss.item() / dist.get_world_size(),
            gradient_norm=total_norm(squares_P.tolist(), params),
            squares_P=squares_P.tolist(),
            routing=routing,
        )
