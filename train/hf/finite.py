"""Find NaN and infinite numbers in weights, and report them."""

from collections.abc import Sequence
from pathlib import Path

import torch

from data.base.problems import listed_clauses

DIVERGED = "specify an earlier checkpoint, from before the training diverged"
"""The hint for a checkpoint whose weights are not finite."""


def is_finite(rows: torch.Tensor) -> bool:
    """Whether all numbers are finite. Needs a single pass and no additional memory."""
    return bool(torch.stack(rows.aminmax()).isfinite().all())  # aminmax propagates NaN


def not_finite(where: str, places: Sequence[str], hint: str) -> str:
    """Return the error message for numbers that are not finite. `places` are the names of the tensors, with their files
    if there are several files."""
    return f"there are NaN or infinite numbers in {where}: {listed_clauses(places)}: {hint}"


def of_checkpoint(checkpoint: Path, names: Sequence[str]) -> str:
    """Return the error message for a checkpoint in which the tensors with these names are not finite."""
    return not_finite(f"the weights of {checkpoint}", names, DIVERGED)
