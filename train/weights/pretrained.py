"""Read the weights of a standard Hugging Face DBRX model row by row. Each rank reads only its own rows.

The weights are safetensors files in a folder or in a repository on the hub. No code from the folder or repository is
executed, and no pickle is opened.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.base.errors import ConfigError
from data.base.paths import is_file_name, shown
from data.base.problems import listed_clauses
from data.config.build import build
from data.hub.repository_files import refuse_links_in_hub_cache
from train.hf.config_json import contradictions
from train.hf.repository import (
    FILES_TO_FETCH,
    INDEX,
    KEY,
    errors_name_the_key,
    fetch,
    find_folder,
    no_weights,
    read_config_json,
)
from train.hf.safetensors_file import Stored, read_header
from train.models.config import ModelConfig
from train.models.precision import BY_SAFETENSORS
from train.models.shapes import parameter_shapes

if TYPE_CHECKING:
    import torch

    from train.hf.raw_rows import Piece


class PretrainedFolder:
    """The tensors in a folder of weights. Created by `open`."""

    def __init__(self, name: str, folder: Path, model: ModelConfig, tensors: dict[str, tuple[Path, Stored]]) -> None:
        self.name = name
        self.folder = folder
        self.model = model
        """The model config of the weights."""
        self.tensors = tensors
        """For each parameter, the file that contains the parameter and its location in the file. Parameters have the
        names of a standard DBRX model."""

    @classmethod
    def open(cls, name: str, model: ModelConfig | None = None) -> "PretrainedFolder":
        """Read config.json, the index and the header of every file, but no tensor. Files on the hub are fetched first.

        Raises ConfigError if the files are not a complete standard DBRX model, or if `model` would change the meaning
        of the weights.
        """
        folder = find_folder(name)
        if folder is None:
            folder = fetch(name, FILES_TO_FETCH)
            with errors_name_the_key(f"is {name!r}"):
                refuse_links_in_hub_cache(folder)
        values, _ = read_config_json(name, folder / "config.json")
        subject = f"is {name!r}"
        try:
            own = _as_config(values)
        except ValueError as error:
            raise ConfigError(f"{subject}, but its config.json is not valid: {error}", key=KEY) from None
        if model is not None and (found := contradictions(values, dataclasses.asdict(model))):
            changed = "; ".join(
                f"{key} is {there} in its config.json, but {here} in this config" for key, there, here in found
            )
            raise ConfigError(f"{subject}, but its config.json does not match this config: {changed}", key=KEY)
        with errors_name_the_key(subject):
            tensors, problems = _tensors(folder)
        problems += _differences({key: stored for key, (_, stored) in tensors.items()}, parameter_shapes(own))
        if problems:
            named = listed_clauses(problems)
            raise ConfigError(
                f"{subject}, but its weights are not those of a standard DBRX model ({named}): use the weights of a "
                "standard DBRX model, or export these weights again",
                key=KEY,
            )
        return cls(name, folder, own, tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    @property
    def files(self) -> list[Path]:
        """All files with tensors."""
        return sorted({path for path, _ in self.tensors.values()})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: stored.shape for name, (_, stored) in self.tensors.items()}

    def pieces(self, name: str, dtype: "torch.dtype") -> "list[Piece] | None":
        """Return the location of the parameter's bytes; None if the parameter has a different dtype."""
        from train.hf.raw_rows import Piece

        path, stored = self.tensors[name]
        if BY_SAFETENSORS[stored.dtype].torch_dtype != dtype:
            return None
        return [Piece(path, stored.start, stored.stop - stored.start)]

    def rows(self, name: str, start: int, stop: int, out: "torch.Tensor") -> None:
        """Read rows [start, stop) of a parameter into `out` [stop - start, ...], in the dtype and on the device of
        `out`.

        Only the bytes of these rows are read, in small chunks. Raises ConfigError if the rows cannot be read.
        """
        from train.hf.raw_rows import opened, read_rows

        path, stored = self.tensors[name]
        number = BY_SAFETENSORS[stored.dtype]
        row_bytes = math.prod(stored.shape[1:]) * number.n_bytes
        with errors_name_the_key(f"is {self.name!r}"), opened(path) as file:
            read_rows(file, stored.start + start * row_bytes, number.torch_dtype, out[: stop - start])

    def not_finite(self, names: Sequence[str]) -> ConfigError:
        """Return the error for parameters that are not finite."""
        from train.hf.finite import not_finite

        places = [f"{name} in {self.tensors[name][0].name}" for name in names]
        hint = "download the weights again, or specify weights whose training did not diverge"
        return ConfigError(f"is {self.name!r}, but {not_finite('its weights', places, hint)}", key=KEY)


def _as_config(values: dict[str, Any]) -> ModelConfig:
    return build(ModelConfig, values)


def _tensors(folder: Path) -> tuple[dict[str, tuple[Path, Stored]], list[str]]:
    """Return the tensors of all files, and the defects of the files and the index."""
    index, files, problems = folder / INDEX, sorted(folder.glob("*.safetensors")), []
    weight_map: dict[str, str] | None = None
    if index.is_file():
        try:
            named: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            names = sorted(set(named.values()))
            elsewhere = [name for name in names if not is_file_name(name)]
            files, weight_map = [folder / name for name in names], named
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise ValueError(f"its {INDEX} is damaged: download or copy it again") from None
        if elsewhere:
            raise ValueError(
                f"its {INDEX} lists {shown(elsewhere[0])}, which is not a file of the folder: only files in the folder "
                f"are read, so the index must list only such files"
            )
    elif len(files) > 1:
        # There may be, for example, a consolidated copy next to shards. Without an index, it is not known which files
        # to use.
        raise ValueError(
            f"it has {len(files)} safetensors files, but no {INDEX} that lists their tensors: download or copy the "
            f"index too"
        )
    if not files:
        raise ValueError(no_weights([path.name for path in folder.iterdir()]))
    tensors: dict[str, tuple[Path, Stored]] = {}
    for file in files:
        if not file.is_file():
            problems.append(f"{file.name} is missing")
            continue
        try:
            tensors |= {name: (file, stored) for name, stored in read_header(file).items()}
        except ValueError as error:
            problems.append(str(error))
    if problems:
        # Raise here, so that tensors in unreadable files are not also reported as missing.
        unread = listed_clauses(problems)
        raise ValueError(f"some files cannot be read: {unread}: download or copy them again")
    if weight_map is not None:
        problems += [
            f"{name} is in {tensors[name][0].name}, but the index lists {file}"
            for name, file in weight_map.items()
            if name in tensors and tensors[name][0].name != file
        ]
    return tensors, problems


def _differences(tensors: dict[str, Stored], shapes: dict[str, tuple[int, ...]]) -> list[str]:
    problems = [f"{name} is missing" for name in shapes if name not in tensors]
    problems += [f"{name} is not a parameter of DBRX" for name in tensors if name not in shapes]
    for name, stored in tensors.items():
        if stored.shape != shapes.get(name, stored.shape):
            problems.append(f"{name} is {list(stored.shape)}, expected {list(shapes[name])}")
        elif name in shapes and stored.dtype not in BY_SAFETENSORS:
            problems.append(f"{name} is {stored.dtype}, expected F32, BF16 or F16")
    return problems
