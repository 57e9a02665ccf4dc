"""Tokenized documents, and their transfer from workers to the parent process."""

import os
import tempfile
import weakref
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

SPOOLED_BYTES = 8 << 20
"""Maximum size in bytes of a token array that is sent through a pipe. Larger arrays are sent in a file, because a pipe
needs a complete copy in memory."""


class SpooledTokens:
    """An array in a file. Slices are read on demand. A memory map is not used, because the whole array would end up in
    memory."""

    def __init__(self, file: Path, dtype: np.dtype) -> None:
        """Unlink the file. Its content can still be read through the open file descriptor."""
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
    """Several documents, concatenated."""

    tokens: np.ndarray | SpooledTokens
    """Token ids, unsigned."""
    loss_mask: np.ndarray
    """The loss mask, with the same length as tokens. It is empty for texts, because all tokens of texts are trained
    on."""
    lengths: np.ndarray
    """Number of tokens of each document."""
    are_texts: bool
    places_D2: np.ndarray
    """Index of the file in the source's `inputs`, and position in this file, of each document; int64."""

    @property
    def weight(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    def received(self) -> "Documents":
        return self


@dataclass(frozen=True, eq=False)
class Spooled:
    """Documents whose tokens are sent to the parent process in a file."""

    file: Path
    dtype: np.dtype
    rest: Documents

    def received(self) -> Documents:
        return replace(self.rest, tokens=SpooledTokens(self.file, self.dtype))


def to_parent(documents: Documents, folder: Path) -> Documents | Spooled:
    """The documents in the form in which they are sent to the parent process. If the tokens are too large for a pipe,
    they are written to a file in `folder`."""
    tokens = documents.tokens
    if not isinstance(tokens, np.ndarray) or tokens.nbytes <= SPOOLED_BYTES:
        return documents
    return Spooled(_spool(tokens, folder), tokens.dtype, replace(documents, tokens=np.empty(0)))


def _spool(tokens: np.ndarray, folder: Path) -> Path:
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tokens", delete=False) as file:
        tokens.tofile(file)
    return Path(file.name)
