"""Read a checkpoint's tensors: whole tensors, some of their rows, or only a rank's shards."""

import io
import itertools
import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import planner as planners
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.futures import Future

from data.base.errors import ConfigError
from train.checkpoint.storage.files import CheckpointFiles, Part, VerifiedFile
from train.checkpoint.storage.manifest import METADATA, CorruptCheckpointError, Manifest
from train.checkpoint.storage.unpickle import load_values, read_metadata
from train.hf.raw_rows import Piece, read_rows
from train.models.config import LoraConfig, ModelConfig
from train.models.lora.adapters import is_adapter
from train.models.shapes import adapter_shapes, parameter_shapes

MODEL = "state.model."
PREFIX = "state.model.model."
"""Prefix of the weights' keys. As in a Composer checkpoint, `state.model` is the ComposerModel, whose attribute `model`
is the network."""
OPTIMIZERS = "state.optimizers."
"""Prefix of the optimizer's keys. The state of a parameter has the keys
state.optimizers.CLASS.state.model.PARAMETER.KEY."""


class CheckpointReader(FileSystemReader):
    """Reads a checkpoint folder and verifies all data that it reads against the manifest. torch's index, which lists
    all chunks of the tensors, is read once. Can be used as the storage_reader of torch.distributed.checkpoint.load.
    Every read may raise CorruptCheckpointError.
    """

    def __init__(self, checkpoint: Path, *, verify: bool = True) -> None:
        super().__init__(checkpoint)
        self.checkpoint = checkpoint
        self._contents = CheckpointFiles(checkpoint, verify=verify)
        self._places: dict[MetadataIndex, tuple[str, int, int]] = {}
        data = self._contents.read(METADATA)
        try:
            self.metadata = read_metadata(data, checkpoint, METADATA)
        except CorruptCheckpointError as error:
            if self.manifest is None or not verify:
                raise
            wrote = self.manifest.versions.get("torch", "of another version")
            raise ConfigError(
                f"{checkpoint} cannot be read with torch {torch.__version__}, because torch {wrote} wrote it "
                f"({METADATA} {error.defect}): install that version or a newer one"
            ) from None

    @property
    def manifest(self) -> Manifest | None:
        """The manifest against which reads are verified; None if the checkpoint was written before manifests
        existed."""
        return self._contents.manifest

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata

    def read_file(self, name: str) -> bytes:
        """Read a small file as a whole."""
        return self._contents.read(name)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the model's parameters, by name."""
        stored = self.metadata.state_dict_metadata
        return {
            key.removeprefix(PREFIX): tuple(value.size)
            for key, value in stored.items()
            if key.startswith(PREFIX) and isinstance(value, TensorStorageMetadata)
        }

    @property
    def tensor_keys(self) -> list[str]:
        """Keys of the weights and of the optimizer's state. Raises CorruptCheckpointError if a tensor is stored in
        chunks that `rows_of` cannot read."""
        keys = []
        for key, value in self.metadata.state_dict_metadata.items():
            if key.startswith((MODEL, OPTIMIZERS)) and isinstance(value, TensorStorageMetadata):
                if value.size and not _in_rows(value):
                    defect = f"has chunks of {key.removeprefix(PREFIX)} that do not consist of disjoint, whole rows"
                    raise CorruptCheckpointError(self.checkpoint, METADATA, defect)
                keys.append(key)
        return keys

    @property
    def files(self) -> list[Path]:
        """All files of the checkpoint."""
        return [path for path in sorted(self.checkpoint.iterdir()) if path.is_file()]

    def tensor(self, key: str) -> torch.Tensor:
        """Read a whole tensor, regardless of how it was sharded."""
        size, dtype = self.describe(key)
        whole = torch.empty(size, dtype=dtype)
        self.rows_of(key, 0, size[0], whole)
        return whole

    def describe(self, key: str) -> tuple[tuple[int, ...], torch.dtype]:
        """The shape and the dtype of a tensor."""
        stored = self._stored(key)
        return tuple(stored.size), stored.properties.dtype

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fill the tensors in place. For a DTensor, only this rank's shard is filled. Every rank must call this.

        Raises CheckpointException on every rank if reading fails on any rank; its `failures` contain the errors.
        """
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        with torch.no_grad():
            load({key: tensor.detach() for key, tensor in tensors.items()}, storage_reader=self, planner=planner)

    def pieces(self, name: str, dtype: torch.dtype) -> list[Piece] | None:
        """Return the locations of a parameter's bytes. Return None if the dtype differs, or if the bytes must be
        verified against the manifest and therefore cannot be copied directly from file to file."""
        if self.manifest is not None:
            return None
        stored = self._stored(PREFIX + name)
        if stored.properties.dtype != dtype:
            return None
        chunks = sorted((chunk for chunk in stored.chunks if chunk.sizes[0]), key=lambda chunk: chunk.offsets[0])
        places = [self._place(PREFIX + name, chunk) for chunk in chunks]
        return [Piece(self.checkpoint / file, offset, length) for file, offset, length in places]

    def rows(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        """Read rows [start, stop) of a parameter into `out` [stop - start, ...], and convert them to the dtype of
        `out`. Reads only the bytes of these rows."""
        self.rows_of(PREFIX + name, start, stop, out)

    def rows_of(self, key: str, start: int, stop: int, out: torch.Tensor) -> None:
        """Like `rows`, for any tensor of the checkpoint. A scalar counts as one row."""
        stored = self._stored(key)
        for chunk in stored.chunks:
            # FSDP2 shards only along the first dimension, so chunks consist of whole rows.
            first = chunk.offsets[0] if chunk.sizes else 0
            last = first + (chunk.sizes[0] if chunk.sizes else 1)
            low, high = max(start, first), min(stop, last)
            if low < high:
                place = self._place(key, chunk)
                with self._contents.open(place[0]) as file:
                    self._read_rows(file, key, chunk, place, low - first, out[low - start : high - start])

    def read_data(self, plan: planners.LoadPlan, planner: planners.LoadPlanner) -> Future[None]:
        """Read the chunks that the plan needs, in the order in which they are stored in the files."""
        items = sorted(plan.items, key=lambda item: _order(self._info(item.storage_index)))
        by_file = itertools.groupby(items, lambda item: self._info(item.storage_index).relative_path)
        for name, in_file in by_file:
            with self._contents.open(name) as file:
                for item in in_file:
                    if item.type == planners.LoadItemType.BYTE_IO:
                        planner.load_bytes(item, io.BytesIO(self._bytes(file, item.storage_index)))
                    else:
                        out = planner.resolve_tensor(item).detach()
                        self._read_item(file, item, out)
                        planner.commit_tensor(item, out)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read_item(self, file: VerifiedFile, item: planners.ReadItem, out: torch.Tensor) -> None:
        key = item.storage_index.fqn
        chunk = self._chunk(item.storage_index)
        place = self._place(key, chunk, file)
        offsets, lengths = tuple(item.storage_offsets), tuple(item.lengths)
        if not chunk.sizes:
            self._read_rows(file, key, chunk, place, 0, out.view(1))
        elif lengths[1:] == tuple(chunk.sizes[1:]):
            self._read_rows(file, key, chunk, place, offsets[0], out)
        else:
            whole = torch.empty(chunk.sizes, dtype=self._stored(key).properties.dtype)
            self._read_rows(file, key, chunk, place, 0, whole)
            out.copy_(whole[tuple(slice(start, start + n) for start, n in zip(offsets, lengths, strict=True))])

    def _read_rows(
        self,
        file: VerifiedFile,
        key: str,
        chunk: ChunkStorageMetadata,
        place: tuple[str, int, int],
        first: int,
        out: torch.Tensor,
    ) -> None:
        """Read rows of a chunk, starting with row `first`. A scalar counts as one row."""
        _, offset, length = place
        row_bytes = length // chunk.sizes[0] if chunk.sizes else length
        read_rows(file, offset + first * row_bytes, self._stored(key).properties.dtype, out)

    def _place(self, key: str, chunk: ChunkStorageMetadata, file: VerifiedFile | None = None) -> tuple[str, int, int]:
        """Return the file, the offset and the length of a chunk's values, which are inside a zip that torch.save
        wrote."""
        index = MetadataIndex(key, chunk.offsets)
        if index not in self._places:
            name = self._info(index).relative_path
            if file is None:
                with self._contents.open(name) as opened:
                    start, length = self._find(index, opened)
            else:
                start, length = self._find(index, file)
            if length != math.prod(chunk.sizes) * self._stored(key).properties.dtype.itemsize:
                defect = (
                    f"has a chunk of {key.removeprefix(PREFIX)} with {length:,} bytes, which does not match its shape"
                )
                raise CorruptCheckpointError(self.checkpoint, name, defect)
            self._places[index] = name, start, length
        return self._places[index]

    def _find(self, index: MetadataIndex, file: VerifiedFile) -> tuple[int, int]:
        info = self._info(index)
        try:
            with zipfile.ZipFile(Part(file, info.offset, info.length)) as opened:  # pyright: ignore[reportArgumentType]: Part has the methods that ZipFile uses
                (record,) = (entry for entry in opened.infolist() if entry.filename.endswith("/data/0"))
            header = memoryview(bytearray(30))
            file.read_into(info.offset + record.header_offset, header)
            # A zip's local header has 30 bytes; the last four are the lengths of the name and of the extra field.
            name_length, extra_length = struct.unpack("<HH", header[26:30])
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            if isinstance(error, ConfigError):
                raise
            name = index.fqn.removeprefix(PREFIX)
            raise CorruptCheckpointError(self.checkpoint, file.name, f"does not contain {name}: {error}") from None
        return info.offset + record.header_offset + 30 + name_length + extra_length, record.file_size

    def _info(self, index: MetadataIndex) -> Any:
        try:
            return self.metadata.storage_data[index]
        except KeyError:
            raise CorruptCheckpointError(self.checkpoint, METADATA, f"does not list {index.fqn}") from None

    def _chunk(self, index: MetadataIndex) -> ChunkStorageMetadata:
        chunks = self._stored(index.fqn).chunks
        if index.index is not None and index.index < len(chunks) and chunks[index.index].offsets == index.offset:
            return chunks[index.index]
        return next(chunk for chunk in chunks if chunk.offsets == index.offset)

    def _stored(self, key: str) -> TensorStorageMetadata:
        found = self.metadata.state_dict_metadata[key]
        assert isinstance(found, TensorStorageMetadata)
        return found

    def optimizer_keys(self, optimizer: str) -> Iterator[tuple[str, str]]:
        """Yield the (parameter, key) pair of each tensor in an optimizer's state. optimizer: the name of its class."""
        prefix = f"{OPTIMIZERS}{optimizer}.state.model."
        for key, value in self.metadata.state_dict_metadata.items():
            if key.startswith(prefix) and isinstance(value, TensorStorageMetadata):
                name, _, what = key.removeprefix(prefix).rpartition(".")
                yield name, what

    def value(self, key: str) -> Any:
        """Return a value that is not a tensor, from a checkpoint written before state.json existed. Raises KeyError."""
        index = MetadataIndex(key)
        place = self.metadata.storage_data[index]
        with self._contents.open(place.relative_path) as file:
            return load_values(io.BytesIO(self._bytes(file, index)), self.checkpoint, f"{file.name} ({key})")

    def _bytes(self, file: VerifiedFile, index: MetadataIndex) -> bytes:
        place = self._info(index)
        data = bytearray(place.length)
        file.read_into(place.offset, memoryview(data))
        return bytes(data)

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    @property
    def holds_adapters(self) -> bool:
        return any(map(is_adapter, self.shapes))

    def check(self, model: ModelConfig, whose: str, lora: LoraConfig | None = None) -> None:
        """Raise ConfigError unless the checkpoint contains exactly the tensors of the model.

        whose: how error messages refer to the config of the model. With lora, the tensors must be those of the
        adapters.
        """
        if lora is None and self.holds_adapters:
            raise ConfigError(f"{self.checkpoint} contains only adapters, but {whose} has no lora")
        problems = self._tensor_problems(parameter_shapes(model) if lora is None else adapter_shapes(model, lora))
        if problems:
            more = f" (and {len(problems) - 10} more)" if len(problems) > 10 else ""
            raise ConfigError(
                f"{self.checkpoint} does not match the model of {whose}: {'; '.join(problems[:10])}{more}"
            )
        needed: dict[str, int] = {}
        for place in self.metadata.storage_data.values():
            needed[place.relative_path] = max(needed.get(place.relative_path, 0), place.offset + place.length)
        for name, size in sorted(needed.items()):
            file = self.checkpoint / name
            if not file.is_file():
                raise CorruptCheckpointError(self.checkpoint, name, "is missing")
            if file.stat().st_size < size:
                there = f"has {file.stat().st_size:,} of {size:,} bytes"
                raise CorruptCheckpointError(self.checkpoint, name, there)

    def _tensor_problems(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        stored = {key: value for key, value in self.metadata.state_dict_metadata.items() if key.startswith(MODEL)}
        wanted = {PREFIX + name: shape for name, shape in shapes.items()}
        problems = [f"{key.removeprefix(PREFIX)} is missing" for key in wanted if key not in stored]
        problems += [f"{key.removeprefix(PREFIX)} is not a parameter of DBRX" for key in stored if key not in wanted]
        for key, shape in wanted.items():
            if key in stored and (found := getattr(stored[key], "size", None)) != torch.Size(shape):
                shape_found = "not a tensor" if found is None else str(list(found))
                problems.append(f"{key.removeprefix(PREFIX)} is {shape_found}, expected {list(shape)}")
            elif key in stored and not _in_rows(stored[key]):
                problems.append(f"{key.removeprefix(PREFIX)} is not stored in disjoint chunks of whole rows")
        return problems


def _order(place: Any) -> tuple[str, int]:
    return place.relative_path, place.offset


def _in_rows(stored: Any) -> bool:
    """Whether each chunk of a tensor consists of contiguous, whole rows. FSDP2 creates such chunks, and `rows_of`
    requires them."""
    pieces = sorted((chunk for chunk in stored.chunks if chunk.sizes[0]), key=lambda chunk: chunk.offsets[0])
    ends = itertools.accumulate((chunk.sizes[0] for chunk in pieces), initial=0)
    whole = all(chunk.sizes[1:] == stored.size[1:] for chunk in pieces)
    return whole and [*(chunk.offsets[0] for chunk in pieces), stored.size[0]] == list(ends)
