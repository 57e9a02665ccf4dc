"""Tokenized documents, and how a worker's reach the parent process."""

import os
import tempfile
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

SPOOLED_BYTES = 8 << 20
"""A chunk's tokens that take more than this come to the parent through a file: a pipe would need them whole."""


class SpooledTokens:
    """An array in a file, of which a slice is read when it is asked for: mapped, all of it would come into memory."""

    def __init__(self, file: Path, dtype: np.dtype) -> None:
        """Removes the file, which stays readable here."""
        self._dtype, self._descriptor = dtype, os.open(file, os.O_RDONLY)
        self._length = file.stat().st_size // dtype.itemsize
        weakref.finalize(self, os.close, self._descriptor)
        file.unlink()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, _ = where.indices(len(self))
        width = self._dtype.itemsize
        return np.frombuffer(os.pread(self._descriptor, (stop - start) * width, start * width), dtype=self._dtype)


@dataclass(frozen=True, eq=False)
class Documents:
    """Documents end to end."""

    tokens: np.ndarray | SpooledTokens
    """Unsigned."""
    loss_mask: np.ndarray
    """As long as tokens; empty for texts, of which every token is trained on."""
    lengths: np.ndarray
    """Of each document."""
    are_texts: bool

    @property
    def weight(self) -> int:
        """Tokens."""
        return len(self.tokens)

    def received(self) -> "Documents":
        return self


@dataclass(frozen=True, eq=False)
class Spooled:
    """Documents whose tokens came to the parent through a file."""

    file: Path
    dtype: np.dtype
    rest: Documents

    def received(self) -> Documents:
        return replace(self.rest, tokens=SpooledTokens(self.file, self.dtype))


def to_parent(documents: Documents, folder: Path) -> Documents | Spooled:
    """The documents as they are sent to the parent; `folder` is for what is too large for a pipe."""
    tokens = documents.tokens
    if not isinstance(tokens, np.ndarray) or tokens.nbytes <= SPOOLED_BYTES:
        return documents
    return Spooled(_spool(tokens, folder), tokens.dtype, replace(documents, tokens=np.empty(0)))


def _spool(tokens: np.ndarray, folder: Path) -> Path:
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tokens", delete=False) as file:
        tokens.tofile(file)
    return Path(file.name)
