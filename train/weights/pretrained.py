"""Weights of a stock Hugging Face DBRX folder, read row by row: each rank takes its own rows, and nobody the whole.

A folder, or a repository of the hub, of safetensors files. Nothing in it is ever run, and no pickle is opened.
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
    """What a folder of weights holds. `open` makes one."""

    def __init__(self, name: str, folder: Path, model: ModelConfig, tensors: dict[str, tuple[Path, Stored]]) -> None:
        self.name = name
        self.folder = folder
        self.model = model
        """The shape of its DBRX."""
        self.tensors = tensors
        """Every parameter's file and place in it, by its name in stock DBRX."""

    @classmethod
    def open(cls, name: str, model: ModelConfig | None = None) -> "PretrainedFolder":
        """Reads config.json, the index and every file's header, no tensor; from the hub all files are fetched first.

        Raises ConfigError when they are not a whole stock DBRX, or their weights mean something else in `model`.
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
            raise ConfigError(f"{subject}, but its config.json cannot be: {error}", key=KEY) from None
        if model is not None and (found := contradictions(values, dataclasses.asdict(model))):
            changed = "; ".join(f"{key} is {there} there, {here} in this config" for key, there, here in found)
            raise ConfigError(f"{subject}, but these are other weights: {changed}", key=KEY)
        with errors_name_the_key(subject):
            tensors, problems = _tensors(folder)
        problems += _differences({key: stored for key, (_, stored) in tensors.items()}, parameter_shapes(own))
        if problems:
            named = listed_clauses(problems)
            raise ConfigError(f"{subject}, but it is no stock DBRX: {named}: name one, or export it anew", key=KEY)
        return cls(name, folder, own, tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    @property
    def files(self) -> list[Path]:
        """All that it reads from."""
        return sorted({path for path, _ in self.tensors.values()})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: stored.shape for name, (_, stored) in self.tensors.items()}

    def pieces(self, name: str, dtype: "torch.dtype") -> "list[Piece] | None":
        """Where the parameter's bytes are; None where its dtype is another."""
        from train.hf.raw_rows import Piece

        path, stored = self.tensors[name]
        if BY_SAFETENSORS[stored.dtype].torch_dtype != dtype:
            return None
        return [Piece(path, stored.start, stored.stop - stored.start)]

    def rows(self, name: str, start: int, stop: int, out: "torch.Tensor") -> None:
        """Reads rows [start, stop) of a parameter into `out` [stop - start, ...], in its dtype, on its device.

        Only these rows' bytes are read, in small pieces. Raises ConfigError when they cannot be.
        """
        from train.hf.raw_rows import opened, read_rows

        path, stored = self.tensors[name]
        number = BY_SAFETENSORS[stored.dtype]
        row_bytes = math.prod(stored.shape[1:]) * number.n_bytes
        with errors_name_the_key(f"is {self.name!r}"), opened(path) as file:
            read_rows(file, stored.start + start * row_bytes, number.torch_dtype, out[: stop - start])

    def not_finite(self, names: Sequence[str]) -> ConfigError:
        """The error when these parameters have been read and are not all numbers."""
        from train.hf.finite import not_finite

        places = [f"{name} in {self.tensors[name][0].name}" for name in names]
        hint = "download it again, or name weights whose training did not diverge"
        return ConfigError(f"is {self.name!r}, but {not_finite('its weights', places, hint)}", key=KEY)


def _as_config(values: dict[str, Any]) -> ModelConfig:
    return build(ModelConfig, values)


def _tensors(folder: Path) -> tuple[dict[str, tuple[Path, Stored]], list[str]]:
    """The tensors of all files, and what is wrong with files and index."""
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
                f"its {INDEX} names {shown(elsewhere[0])}, which is no file of the folder: nothing outside of it is "
                "read, so write names of files that are in it"
            )
    elif len(files) > 1:
        # Such as a consolidated copy beside the parts: without an index nobody knows which are meant.
        raise ValueError(
            f"it has {len(files)} safetensors files, but no {INDEX} that says what is in which: download or copy it too"
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
        # What lies in files that cannot be read is not missing besides.
        unread = listed_clauses(problems)
        raise ValueError(f"not all of it can be read: {unread}: download or copy these files again")
    if weight_map is not None:
        problems += [
            f"{name} is in {tensors[name][0].name}, but {file} by the index"
            for name, file in weight_map.items()
            if name in tensors and tensors[name][0].name != file
        ]
    return tensors, problems


def _differences(tensors: dict[str, Stored], shapes: dict[str, tuple[int, ...]]) -> list[str]:
    problems = [f"{name} is missing" for name in shapes if name not in tensors]
    problems += [f"{name} is not a part of DBRX" for name in tensors if name not in shapes]
    for name, stored in tensors.items():
        if stored.shape != shapes.get(name, stored.shape):
            problems.append(f"{name} is {list(stored.shape)}, not {list(shapes[name])}")
        elif name in shapes and stored.dtype not in BY_SAFETENSORS:
            problems.append(f"{name} is {stored.dtype}, not F32, BF16 or F16")
    return problems
