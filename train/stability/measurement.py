"""What the ranks have to know of a step before its optimizer steps, with one reduction."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from composer.core import State
from composer.utils import dist
from torch import Tensor, nn

from train.distributed.clipping import squared_norms, total_norm
from train.models.dbrx import DbrxOutput


@dataclass(frozen=True, kw_only=True, eq=False)
class StepValues:
    """Of the whole step, the same on every rank."""

    loss: float
    """As Composer logs it, but added up in fp64."""
    gradient_norm: float
    """L2, of all gradients, before they are clipped."""
    counts_LE: np.ndarray
    """Assignments of the step's tokens to each layer's experts."""

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite([self.loss, self.gradient_norm]).all())


class StepMeasurement:
    """Adds up the microbatches of a step on this rank, without waiting for the device."""

    def __init__(self) -> None:
        self._rows = 0
        self._loss: Tensor | None = None
        self._counts_LE: Tensor | None = None

    def begin(self, n_rows: int) -> None:
        """n_rows: of this rank's batch."""
        self._rows, self._loss, self._counts_LE = n_rows, None, None

    def add(self, state: State) -> None:
        """A microbatch, between its loss and its backward pass: there Composer multiplies the loss in place."""
        assert isinstance(state.outputs, DbrxOutput)
        assert isinstance(state.loss, dict)
        share = state.batch["input_ids"].shape[0] / self._rows
        loss, counts_LE = state.loss["total"].detach().double() * share, state.outputs.counts_LE
        self._loss = loss if self._loss is None else self._loss + loss
        self._counts_LE = counts_LE if self._counts_LE is None else self._counts_LE + counts_LE

    @property
    def loss(self) -> float:
        """This rank's part, whose mean over the ranks is the loss of the step."""
        assert self._loss is not None
        return self._loss.item()

    def reduce(self, params: Sequence[nn.Parameter]) -> StepValues:
        """The values of all ranks. Every rank has to call it."""
        assert self._loss is not None
        assert self._counts_LE is not None
        squares_P = squared_norms(params).to(self._loss.device)
        sums = torch.cat((self._loss.view(1), squares_P, self._counts_LE.flatten().double()))
        dist.all_reduce(sums)
        loss, *rest = sums.tolist()
        return StepValues(
            loss=loss / dist.get_world_size(),
            gradient_norm=total_norm(rest[: len(params)], params),
            counts_LE=np.reshape(rest[len(params) :], self._counts_LE.shape),
        )
