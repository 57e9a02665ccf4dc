"""Reads a sharded Composer checkpoint: rows of its parameters, and what else it holds, without torch's loader."""

import io
import itertools
import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata

from data.base.errors import ConfigError
from train.hf.raw_rows import Piece, read_rows
from train.models.config import LoraConfig, ModelConfig
from train.models.lora.adapters import is_adapter
from train.models.shapes import adapter_shapes, parameter_shapes

MODEL = "state.model."
PREFIX = "state.model.model."
"""Where the weights are in a Composer checkpoint: the Trainer's state, its model, and that one's attribute `model`."""


class _Part(io.RawIOBase):
    """A part of a file as if it were one."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if self._at < 0:
            raise OSError("before the beginning")
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(self._length - self._at, 0)
        self._file.seek(self._offset + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data


class CheckpointReader(FileSystemReader):
    """Reads rows of a sharded checkpoint's parameters; its metadata, which lists all their pieces, is read once."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(checkpoint)
        self.checkpoint = checkpoint
        self._places: dict[MetadataIndex, Piece] = {}
        try:
            self.metadata = super().read_metadata()
        except Exception as error:  # a damaged pickle raises almost anything
            raise ConfigError(f"{checkpoint / '.metadata'} cannot be read: {error}") from error

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the model's parameters, by name."""
        stored = self.metadata.state_dict_metadata
        return {
            key.removeprefix(PREFIX): tuple(value.size)
            for key, value in stored.items()
            if key.startswith(PREFIX) and isinstance(value, TensorStorageMetadata)
        }

    @property
    def files(self) -> list[Path]:
        """All that it reads from."""
        return [path for path in sorted(self.checkpoint.iterdir()) if path.is_file()]

    def tensor(self, name: str) -> torch.Tensor:
        """The whole parameter, whatever ranks its pieces came from."""
        stored = self._stored(name)
        whole = torch.empty(stored.size, dtype=stored.properties.dtype)
        self.rows(name, 0, stored.size[0], whole)
        return whole

    def pieces(self, name: str, dtype: torch.dtype) -> list[Piece] | None:
        """Where the parameter's bytes are, row after row; None where its dtype is another. Raises ConfigError."""
        stored = self._stored(name)
        if stored.properties.dtype != dtype:
            return None
        chunks = sorted((chunk for chunk in stored.chunks if chunk.sizes[0]), key=lambda chunk: chunk.offsets[0])
        return [self._piece(name, chunk) for chunk in chunks]

    def rows(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        """Reads rows [start, stop) of a parameter into `out` [stop - start, ...], in its dtype: their bytes alone.

        Raises ConfigError when they cannot be read.
        """
        stored = self._stored(name)
        dtype = stored.properties.dtype
        for chunk in stored.chunks:
            # FSDP2 cuts between rows alone: pieces lie one below the other.
            first, last = chunk.offsets[0], chunk.offsets[0] + chunk.sizes[0]
            low, high = max(start, first), min(stop, last)
            if low >= high:
                continue
            piece = self._piece(name, chunk)
            row_bytes = piece.length // chunk.sizes[0]
            try:
                read_rows(piece.path, piece.offset + (low - first) * row_bytes, dtype, out[low - start : high - start])
            except (OSError, ValueError) as error:
                raise ConfigError(f"{self.checkpoint} is damaged: {name} cannot be read: {error}") from error

    def _piece(self, name: str, chunk: ChunkStorageMetadata) -> Piece:
        stored = self._stored(name)
        try:
            piece = self._place(name, chunk.offsets)
            if piece.length != math.prod(chunk.sizes) * stored.properties.dtype.itemsize:
                raise ValueError(f"a piece has {piece.length:,} bytes")
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ConfigError(f"{self.checkpoint} is damaged: {name} cannot be read: {error}") from error
        return piece

    def _place(self, name: str, offsets: torch.Size) -> Piece:
        """Where a parameter's piece is, which torch.save wrote as a zip."""
        index = MetadataIndex(PREFIX + name, offsets)
        if index not in self._places:
            info = self.metadata.storage_data[index]
            path = self.checkpoint / info.relative_path
            with path.open("rb") as file, zipfile.ZipFile(_Part(file, info.offset, info.length)) as opened:  # pyright: ignore[reportArgumentType]: what it needs of a file is there
                (record,) = (entry for entry in opened.infolist() if entry.filename.endswith("/data/0"))
                file.seek(info.offset + record.header_offset)
                header = file.read(30)
            # A zip's local header: 30 bytes, of which the last four say how long the name and the extra field are.
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            start = info.offset + record.header_offset + 30 + name_length + extra_length
            self._places[index] = Piece(path, start, record.file_size)
        return self._places[index]

    def _stored(self, name: str) -> TensorStorageMetadata:
        stored = self.metadata.state_dict_metadata[PREFIX + name]
        assert isinstance(stored, TensorStorageMetadata)
        return stored

    def value(self, key: str) -> Any:
        """What is stored that is no tensor. Raises KeyError."""
        place = self.metadata.storage_data[MetadataIndex(key)]
        with (self.checkpoint / place.relative_path).open("rb") as file:
            file.seek(place.offset)
            return torch.load(io.BytesIO(file.read(place.length)), weights_only=False)

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    @property
    def holds_adapters(self) -> bool:
        return any(map(is_adapter, self.shapes))

    def check(self, model: ModelConfig, whose: str, lora: LoraConfig | None = None) -> None:
        """Raises ConfigError when the tensors are not those of the model (`whose` config says), or not all there.

        With lora they are to be those of its adapters alone.
        """
        if lora is None and self.holds_adapters:
            raise ConfigError(f"{self.checkpoint} holds adapters alone, but {whose} has no lora")
        problems = self._tensor_problems(parameter_shapes(model) if lora is None else adapter_shapes(model, lora))
        if problems:
            more = f" (and {len(problems) - 10} more)" if len(problems) > 10 else ""
            raise ConfigError(f"{self.checkpoint} does not hold the DBRX of {whose}: {'; '.join(problems[:10])}{more}")
        needed: dict[str, int] = {}
        for place in self.metadata.storage_data.values():
            needed[place.relative_path] = max(needed.get(place.relative_path, 0), place.offset + place.length)
        for name, size in sorted(needed.items()):
            file = self.checkpoint / name
            if not file.is_file():
                raise ConfigError(f"{self.checkpoint} is not whole: {name} is missing")
            if file.stat().st_size < size:
                there = f"{file.stat().st_size:,} of {size:,} bytes"
                raise ConfigError(f"{self.checkpoint} is not whole: {name} has {there}")

    def _tensor_problems(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        stored = {key: value for key, value in self.metadata.state_dict_metadata.items() if key.startswith(MODEL)}
        wanted = {PREFIX + name: shape for name, shape in shapes.items()}
        problems = [f"{key.removeprefix(PREFIX)} is missing" for key in wanted if key not in stored]
        problems += [f"{key.removeprefix(PREFIX)} is not a part of DBRX" for key in stored if key not in wanted]
        for key, shape in wanted.items():
            if key in stored and (found := getattr(stored[key], "size", None)) != torch.Size(shape):
                shape_found = "no tensor" if found is None else str(list(found))
                problems.append(f"{key.removeprefix(PREFIX)} is {shape_found}, not {list(shape)}")
            elif key in stored and not _in_rows(stored[key]):
                problems.append(f"{key.removeprefix(PREFIX)} is not in pieces of whole rows, each once")
        return problems


def _in_rows(stored: Any) -> bool:
    """Whether a tensor's pieces lie one below the other without a gap, as FSDP2 cuts: so `rows` takes them."""
    pieces = sorted((chunk for chunk in stored.chunks if chunk.sizes[0]), key=lambda chunk: chunk.offsets[0])
    ends = itertools.accumulate((chunk.sizes[0] for chunk in pieces), initial=0)
    whole = all(chunk.sizes[1:] == stored.size[1:] for chunk in pieces)
    return whole and [*(chunk.offsets[0] for chunk in pieces), stored.size[0]] == list(ends)
