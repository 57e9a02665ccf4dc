"""Measure how much the tensors of two checkpoints differ. The tensors are read in chunks."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from train.checkpoint.load import Checkpoint
from train.checkpoint.reader import OPTIMIZERS, PREFIX

_PIECE = 1 << 18
"""Number of elements that are compared at a time. The comparison of a chunk uses a few buffers of 2 MB each. Larger
chunks are not faster."""


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """The difference of two tensors of the same shape."""

    name: str
    largest: float
    """The largest absolute difference. `largest`, `mean` and `relative` are nan if an element is nan in only one of the
    tensors."""
    mean: float
    """The mean absolute difference."""
    relative: float
    """The norm of the difference, divided by the norm of the first tensor."""


@dataclass(frozen=True, kw_only=True)
class TensorsCompared:
    """The comparison of all tensors: weights and optimizer state."""

    n_equal: int
    only_first: Sequence[str]
    only_second: Sequence[str]
    other_shape: Sequence[str]
    """Tensors whose shape or dtype differs, such as `name: float32 [2, 3], float32 [3, 3]`."""
    different: Sequence[TensorDifference]
    """Largest differences first."""
    scalars: Mapping[str, int]
    """Changes of scalars, such as the optimizer's step counts (`AdamW step: 4 -> 8`), and the number of tensors with
    each change."""

    @property
    def equal(self) -> bool:
        return not (self.only_first or self.only_second or self.other_shape or self.different or self.scalars)


def compare_tensors(
    a: Checkpoint, b: Checkpoint, progress: Callable[[int], object] = lambda n_bytes: None
) -> TensorsCompared:
    """Compare all tensors. progress is called with the number of bytes of `a` that were compared since the last call.
    Raises CorruptCheckpointError if a checkpoint is corrupt."""
    of_a, of_b = a.tensor_keys, set(b.tensor_keys)
    both = [key for key in of_a if key in of_b]
    other_shape, different, scalars = [], [], Counter[str]()
    for key in both:
        if a.describe(key) != b.describe(key):
            other_shape.append(f"{name_of(key)}: {_show(a, key)}, {_show(b, key)}")
        elif not a.describe(key)[0]:
            if (change := _scalar(a, b, key)) is not None:
                scalars[change] += 1
        elif (found := _compare(a, b, key, progress)) is not None:
            different.append(found)
    return TensorsCompared(
        n_equal=len(both) - len(other_shape) - len(different) - scalars.total(),
        only_first=[name_of(key) for key in of_a if key not in of_b],
        only_second=sorted(name_of(key) for key in of_b.difference(of_a)),
        other_shape=other_shape,
        different=sorted(different, key=lambda each: -_for_order(each.largest)),
        scalars=scalars,
    )


def name_of(key: str) -> str:
    """Return the name of a parameter: the key without its prefix. For optimizer state, the optimizer's class and the
    key of the state are appended."""
    if not key.startswith(OPTIMIZERS):
        return key.removeprefix(PREFIX)
    name, what = _of_optimizer(key)
    return f"{name} ({what})"


def _of_optimizer(key: str) -> tuple[str, str]:
    """Return the parameter's name, and the optimizer's class and the key of the state, such as `AdamW exp_avg`."""
    optimizer, _, rest = key.removeprefix(OPTIMIZERS).partition(".state.model.")
    name, _, what = rest.rpartition(".")
    return name, f"{optimizer} {what}"


def _scalar(a: Checkpoint, b: Checkpoint, key: str) -> str | None:
    """Return the change of a scalar; None if it is bitwise equal in both checkpoints."""
    first, second = (torch.empty(1, dtype=each.describe(key)[1]) for each in (a, b))
    a.rows_of(key, 0, 1, first)
    b.rows_of(key, 0, 1, second)
    if torch.equal(first.view(torch.uint8), second.view(torch.uint8)):
        return None
    what = _of_optimizer(key)[1] if key.startswith(OPTIMIZERS) else name_of(key)
    return f"{what}: {first.item():g} -> {second.item():g}"


def _compare(a: Checkpoint, b: Checkpoint, key: str, progress: Callable[[int], object]) -> TensorDifference | None:
    """Return the difference of two tensors; None if they are bitwise equal."""
    shape, dtype = a.describe(key)
    rows, row = shape[0], shape[1:]
    step = max(_PIECE // max(math.prod(row), 1), 1)
    same, largest, total, squares, norm = True, 0.0, 0.0, 0.0, 0.0
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        first, second = (torch.empty((stop - start, *row), dtype=dtype) for _ in range(2))
        a.rows_of(key, start, stop, first)
        b.rows_of(key, start, stop, second)
        progress(first.numel() * first.itemsize)
        equal = torch.equal(first.view(-1).view(torch.uint8), second.view(-1).view(torch.uint8))
        same = same and equal
        first = first.double()
        norm += first.square().sum().item()
        if equal:
            continue
        second = second.double()
        difference = (first - second).abs()
        difference[(first == second) | (first.isnan() & second.isnan())] = 0
        largest = max(largest, difference.max().item(), key=_for_order)
        total += difference.sum().item()
        squares += difference.square().sum().item()
    if same:
        return None
    relative = math.sqrt(squares) / math.sqrt(norm) if norm else math.inf if squares else 0.0
    mean = total / max(math.prod(shape), 1)
    return TensorDifference(name=name_of(key), largest=largest, mean=mean, relative=relative)


def _for_order(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _show(checkpoint: Checkpoint, key: str) -> str:
    shape, dtype = checkpoint.describe(key)
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
