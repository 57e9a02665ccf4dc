"""What makes a checkpoint trustworthy: complete, of this model, in a folder that is complete in itself.

Beside its checkpoints a save folder holds `config.yaml`, the resolved config of the run, and `tokenizer/`, so that an
export or another machine needs nothing else. It is written to, and anything in it deleted, only when the run that asks
for it has been accepted in all its parts.
"""

import io
import math
import os
import re
import shutil
import struct
import tempfile
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from data.errors import ConfigError
from data.tokenizer import Tokenizer
from train.config import TrainConfig
from train.models.config import LoraConfig, ModelConfig
from train.models.lora import is_adapter
from train.plan import adapter_shapes, parameter_shapes
from train.pretrained import KEY
from train.raw_rows import read_rows
from train.reader import load_saved_config, to_yaml

MODEL = "state.model."
PREFIX = "state.model.model."
"""Where the weights are in a Composer checkpoint: the Trainer's state, its model, and that one's attribute `model`."""

RECORD = "record.jsonl"
"""In a save folder: a line {batch, rows, tokens, versions} for each checkpoint, {batch, eval} for each evaluation."""

_NAME = re.compile(r"ep\d+-ba(\d+)(?:-rank0\.pt)?")


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a save folder, oldest first; not what a killed run left half-written."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in entries if _NAME.fullmatch(path.name) and is_complete(path)), key=batch_of)


def batch_of(checkpoint: Path) -> int:
    """The batch that its name says."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None
    return int(match[1])


def is_complete(path: Path) -> bool:
    """Sharded: torch renames `.metadata` into place last, after every rank's file. Monolithic: a zip's end is read."""
    return (path / ".metadata").is_file() if path.is_dir() else path.is_file() and zipfile.is_zipfile(path)


def first_failure(error: CheckpointException) -> str:
    """The first line of the first rank's reason."""
    return str(next(iter(error.failures.values()))[0]).partition("\n")[0]


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
        self._places: dict[MetadataIndex, tuple[Path, int, int]] = {}
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
            try:
                path, offset, length = self._place(name, chunk.offsets)
                row_bytes = math.prod(stored.size[1:]) * dtype.itemsize
                if length != chunk.sizes[0] * row_bytes:
                    raise ValueError(f"a piece has {length:,} bytes")
                read_rows(path, offset + (low - first) * row_bytes, dtype, out[low - start : high - start])
            except (OSError, ValueError, zipfile.BadZipFile) as error:
                raise ConfigError(f"{self.checkpoint} is damaged: {name} cannot be read: {error}") from error

    def _place(self, name: str, offsets: torch.Size) -> tuple[Path, int, int]:
        """The file, the first byte and the number of bytes of a parameter's piece, which torch.save wrote as a zip."""
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
            self._places[index] = path, start, record.file_size
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
                said = "no tensor" if found is None else str(list(found))
                problems.append(f"{key.removeprefix(PREFIX)} is {said}, not {list(shape)}")
        return problems


def check_start(path: Path, config: TrainConfig, key: str, *, whole_state: bool) -> None:
    """Raises ConfigError when a run of this config cannot start from the checkpoint that `key` names.

    With whole_state, going on from it and not from its weights alone, the weights must also mean what they meant.
    """
    said = f"{key} is {str(path)!r}"
    if "://" in str(path):
        raise ConfigError(f"{said}, but checkpoints are read from a local or mounted folder for now: copy it there")
    if not path.exists():
        raise ConfigError(f"{said}, but there is no such file or folder")
    if not is_complete(path):
        inside = [found.name for found in checkpoints(path)]
        hint = f"; it holds checkpoints: {path / inside[-1]}" if inside else ""
        raise ConfigError(
            f"{said}, but it is no complete checkpoint (a folder such as ep0-ba100 with .metadata in it, or a .pt "
            f"file){hint}"
        )
    there = "sharded" if path.is_dir() else "full"
    wanted = config.fsdp_config.state_dict_type if config.fsdp_config is not None else "full"
    if there != wanted:
        way_out = f"fsdp_config.state_dict_type={there}" if config.fsdp_config else "fsdp_config={}"
        raise ConfigError(f"{said}, a {there} checkpoint, but this run reads and writes {wanted} ones: write {way_out}")
    if path.is_dir():
        reader = CheckpointReader(path)
        base = config.lora is not None and not reader.holds_adapters
        if base and whole_state:
            raise ConfigError(
                f"{said}, a whole model, of which a run with lora takes the weights alone, as its frozen base: write "
                "load_weights_only=true"
            )
        reader.check(config.model, "this config's model", None if base else config.lora)
    if whole_state:
        _check_meaning(path.resolve().parent / "config.yaml", config, said)


def frozen_base(config: TrainConfig) -> CheckpointReader | None:
    """The checkpoint of a whole model at load_path, which a run with lora takes as its base; None without one."""
    if config.lora is None or config.load_path is None:
        return None
    reader = CheckpointReader(Path(config.load_path))
    return None if reader.holds_adapters else reader


def _check_meaning(before: Path, config: TrainConfig, said: str) -> None:
    """The same tensors compute something else with other heads, rotations, clipping or routing."""
    if not before.is_file():
        return
    was, now = _meaning(load_saved_config(before)), _meaning(config)
    changed = [f"{key} was {was.get(key)}, now {now[key]}" for key in now if was.get(key) != now[key]]
    if changed:
        raise ConfigError(
            f"{said}, but {'; '.join(changed)}: put it back, or start another run with load_path and "
            "load_weights_only=true"
        )


def _meaning(config: TrainConfig) -> dict[str, Any]:
    model, attn, ffn, lora = config.model, config.model.attn_config, config.model.ffn_config, config.lora
    adapters = {} if lora is None else {"lora.alpha": lora.alpha, KEY: model.pretrained_model_name_or_path}
    weights = {
        "n_heads": model.n_heads,
        "attn_config.kv_n_heads": attn.kv_n_heads,
        "attn_config.rope_theta": attn.rope_theta,
        "attn_config.clip_qkv": attn.clip_qkv,
        "ffn_config.moe_top_k": ffn.moe_top_k,
        "ffn_config.moe_num_experts": ffn.moe_num_experts,
        "ffn_config.moe_normalize_expert_weights": ffn.moe_normalize_expert_weights,
    }
    return {f"model.{key}": value for key, value in weights.items()} | adapters


@dataclass(frozen=True, kw_only=True)
class Start:
    """The checkpoint that a run starts from."""

    path: Path
    data_state: Mapping[str, str] | None
    """What the training data's `state_dict` was (see Plan.state), where the run goes on from there, with optimizer and
    random state; None where it takes the weights alone."""
    resuming: bool
    """It is the run's own, found by autoresume."""


def find_start(config: TrainConfig, folder: Path | None) -> Start | None:
    """The newest complete checkpoint in the save folder under autoresume, else load_path, else None.

    Raises ConfigError when the run cannot start from it, or may not write to the save folder. Changes nothing.
    """
    if folder is not None:
        check_save_folder(folder, config)
        newest = next(reversed(checkpoints(folder)), None) if config.autoresume else None
        if newest is not None:
            check_start(newest, config, "the checkpoint that autoresume takes", whole_state=True)
            return Start(path=newest, data_state=_data_state(newest), resuming=True)
    if config.load_path is None:
        return None
    path = Path(config.load_path)
    check_start(path, config, "load_path", whole_state=not config.load_weights_only)
    if frozen_base(config) is not None:
        return None
    return Start(path=path, data_state=None if config.load_weights_only else _data_state(path), resuming=False)


def _data_state(checkpoint: Path) -> dict[str, str]:
    try:
        if checkpoint.is_dir():
            return {"position": CheckpointReader(checkpoint).value("state.dataset_state.train.position")}
        # Mapped, not read: the weights are in the same file.
        state = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=False)["state"]
        return state["dataset_state"]["train"]
    except (KeyError, TypeError):
        raise ConfigError(
            f"{checkpoint} has no position in the data, so a run cannot go on from it: start another from its weights, "
            "with another run_name, load_path and load_weights_only=true"
        ) from None


def run_name_of(config: TrainConfig) -> str:
    return config.run_name or os.environ.get("RUN_NAME") or time.strftime("dbrx-%Y%m%d-%H%M%S")


def local_folder(config: TrainConfig, run_name: str) -> Path | None:
    """The save folder with run_name filled in. Raises ConfigError for a remote one or for another placeholder."""
    return None if config.save_folder is None else fill_in(config.save_folder, run_name, "save_folder")


def fill_in(folder: str, run_name: str, key: str) -> Path:
    """The local folder that a key names, with run_name filled in; ConfigError as of `local_folder`."""
    if "://" in folder:
        raise ConfigError(
            f"{key} is {folder!r}, but checkpoints are written to a local or mounted folder for now: write a path and "
            "copy it to the object store"
        )
    try:
        return Path(folder.format(run_name=run_name))
    except (KeyError, IndexError, ValueError):
        raise ConfigError(f"{key} is {folder!r}, but only {{run_name}} is filled in") from None


def check_save_folder(folder: Path, config: TrainConfig) -> None:
    """Raises ConfigError when the folder cannot be written, or holds checkpoints that this run would neither go on from
    nor may overwrite. Changes nothing in it.
    """
    present = checkpoints(folder)
    if present and not (config.autoresume or config.save_overwrite):
        raise ConfigError(
            f"save_folder {folder} holds {len(present)} checkpoint(s), the newest {present[-1].name}: write "
            "autoresume=true to go on from it, save_overwrite=true to delete them, or another run_name"
        )
    deletes = config.save_overwrite and not config.autoresume
    if deletes and config.load_path and Path(config.load_path).resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"load_path is {config.load_path!r}, which save_overwrite would delete with the other checkpoints of "
            f"{folder}: write another run_name or save_folder"
        )
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigError(f"save_folder {folder} cannot be written: {error.strerror or error}") from None


def furnish_save_folder(folder: Path, config: TrainConfig, tokenizer: Tokenizer, *, resuming: bool) -> None:
    """Writes what belongs beside the checkpoints; deletes those that save_overwrite gives up. For one rank."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as made:
        tokenizer.save_pretrained(Path(made) / "tokenizer", config.max_seq_len)
        (Path(made) / "config.yaml").write_text(to_yaml(config))
        shutil.rmtree(folder / "tokenizer", ignore_errors=True)
        for name in ("tokenizer", "config.yaml"):
            (Path(made) / name).replace(folder / name)
    if not resuming:
        (folder / RECORD).unlink(missing_ok=True)
        for path in checkpoints(folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
