"""NaN and infinite numbers in weights: how they are found, and what is said about them."""

from collections.abc import Sequence
from pathlib import Path

import torch

from data.base.problems import listed_clauses

DIVERGED = "name an earlier checkpoint, from before the training diverged"
"""What to do about a checkpoint."""


def is_finite(rows: torch.Tensor) -> bool:
    """Whether all numbers are finite; one pass over them, which takes no memory."""
    return bool(torch.stack(rows.aminmax()).isfinite().all())  # NaN comes through


def not_finite(where: str, places: Sequence[str], hint: str) -> str:
    """The error's text: `places` are the tensors, with their files where there are several."""
    return f"there are NaN or infinite numbers in {where}: {listed_clauses(places)}: {hint}"


def of_checkpoint(checkpoint: Path, names: Sequence[str]) -> str:
    """What is said of a checkpoint whose tensors of these names are not finite."""
    return not_finite(f"the weights of {checkpoint}", names, DIVERGED)
