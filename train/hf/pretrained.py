"""Weights of a stock Hugging Face DBRX folder, read row by row: each rank takes its own rows, and nobody the whole.

A folder, or a repository of the hub, of safetensors files. Nothing in it is ever run, and no pickle is opened.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import ConfigError
from data.paths import refuse_path
from data.repository_files import check_contents, nested_too_deeply
from data.sources.hub_commit import REQUEST_SECONDS, first_line, quiet
from data.sources.reach import why_offline
from train.hf.config import contradictions, model_values
from train.hf.safetensors_file import BYTES, Stored, read_header
from train.models.config import ModelConfig
from train.plan import parameter_shapes
from train.typed import Builder

if TYPE_CHECKING:
    import torch

    from train.hf.raw_rows import Piece

KEY = "model.pretrained_model_name_or_path"
INDEX = "model.safetensors.index.json"
_TAKEN = ["config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt"]
_TAKEN += ["chat_template*", "*.safetensors", INDEX]
"""Of a repository on the hub."""
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
_MOST_PROBLEMS = 10


def read_values(name: str) -> tuple[dict[str, Any], str]:
    """ModelConfig's keys as the config.json of a folder or hub name has them, and where that was found.

    Raises ConfigError when there is none, or it is of another architecture.
    """
    path = _local(name)
    return _read_values(name, (path if path is not None else _from_hub(name, ["config.json"])) / "config.json")


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
        folder = _local(name)
        if folder is None:
            folder = _from_hub(name, _TAKEN)
        values, _ = _read_values(name, folder / "config.json")
        said = f"{KEY} is {name!r}"
        try:
            own = _as_config(values)
        except ValueError as error:
            raise ConfigError(f"{said}, but its config.json cannot be: {error}") from None
        if model is not None and (found := contradictions(values, dataclasses.asdict(model))):
            changed = "; ".join(f"{key} is {there} there, {here} in this config" for key, there, here in found)
            raise ConfigError(f"{said}, but these are other weights: {changed}")
        with _telling(said):
            tensors, problems = _tensors(folder)
        problems += _differences({key: stored for key, (_, stored) in tensors.items()}, parameter_shapes(own))
        if problems:
            raise ConfigError(f"{said}, but it is no stock DBRX: {listed(problems)}: name one, or export it anew")
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
        from train.hf.raw_rows import TORCH_DTYPES, Piece

        path, stored = self.tensors[name]
        if TORCH_DTYPES[stored.dtype] != dtype:
            return None
        return [Piece(path, stored.start, math.prod(stored.shape) * BYTES[stored.dtype])]

    def rows(self, name: str, start: int, stop: int, out: "torch.Tensor") -> None:
        """Reads rows [start, stop) of a parameter into `out` [stop - start, ...], in its dtype, on its device.

        Only these rows' bytes are read, in small pieces. Raises ConfigError when they cannot be.
        """
        from train.hf.raw_rows import TORCH_DTYPES, read_rows

        path, stored = self.tensors[name]
        row_bytes = math.prod(stored.shape[1:]) * BYTES[stored.dtype]
        with _telling(f"{KEY} is {self.name!r}"):
            read_rows(path, stored.start + start * row_bytes, TORCH_DTYPES[stored.dtype], out[: stop - start])

    def not_finite(self, names: Sequence[str]) -> str:
        """What is said when these parameters have been read and are not all numbers."""
        from train.hf.finite import not_finite

        places = [f"{name} in {self.tensors[name][0].name}" for name in names]
        hint = "download it again, or name weights whose training did not diverge"
        return f"{KEY} is {self.name!r}, but {not_finite('its weights', places, hint)}"


def listed(problems: Sequence[str]) -> str:
    """The first ten, and how many more there are."""
    more = f" (and {len(problems) - _MOST_PROBLEMS} more)" if len(problems) > _MOST_PROBLEMS else ""
    return f"{'; '.join(problems[:_MOST_PROBLEMS])}{more}"


def _as_config(values: dict[str, Any]) -> ModelConfig:
    builder = Builder(ModelConfig)
    model = builder.build(ModelConfig, values, "")
    if builder.problems:
        raise ValueError("; ".join(builder.problems))
    return model


@contextlib.contextmanager
def _telling(said: str) -> Iterator[None]:
    """What is wrong with a file becomes the ConfigError of the key that named it."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{said}, but {error.filename} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{said}, but {error}") from None


def _read_values(name: str, file: Path) -> tuple[dict[str, Any], str]:
    said = f"{KEY} is {name!r}"
    hub_name = None if _local(name) is not None else name
    if not file.is_file():
        raise ConfigError(f"{said}, but there is no config.json in it: name a folder that transformers loads")
    with _telling(said):
        try:
            contents = json.loads(file.read_text(encoding="utf-8"))
        except RecursionError:
            raise nested_too_deeply(file, hub_name) from None
        except ValueError:
            raise ValueError(f"its config.json is not JSON ({file}): download or copy it again") from None
        if not isinstance(contents, dict):
            raise ValueError(f"its config.json holds no mapping ({file})")
        check_contents(contents, file, hub_name)
        return model_values(contents), str(file)


def _tensors(folder: Path) -> tuple[dict[str, tuple[Path, Stored]], list[str]]:
    """The tensors of all files, and what is wrong with files and index."""
    index, files, problems = folder / INDEX, sorted(folder.glob("*.safetensors")), []
    weight_map: dict[str, str] | None = None
    if index.is_file():
        try:
            named: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files, weight_map = [folder / name for name in sorted(set(named.values()))], named
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            raise ValueError(f"its {INDEX} is damaged: download or copy it again") from None
    elif len(files) > 1:
        # Such as a consolidated copy beside the parts: without an index nobody knows which are meant.
        raise ValueError(
            f"it has {len(files)} safetensors files, but no {INDEX} that says what is in which: download or copy it too"
        )
    if not files:
        raise ValueError(_no_weights([path.name for path in folder.iterdir()]))
    tensors: dict[str, tuple[Path, Stored]] = {}
    for file in files:
        if file.parent != folder or not file.is_file():
            problems.append(f"{file.name} is missing")
            continue
        try:
            tensors |= {name: (file, stored) for name, stored in read_header(file).items()}
        except ValueError as error:
            problems.append(str(error))
    if problems:
        # What lies in files that cannot be read is not missing besides.
        raise ValueError(f"not all of it can be read: {listed(problems)}: download or copy these files again")
    if weight_map is not None:
        problems += [
            f"{name} is in {tensors[name][0].name}, but {file} by the index"
            for name, file in weight_map.items()
            if name in tensors and tensors[name][0].name != file
        ]
    return tensors, problems


def _no_weights(names: list[str]) -> str:
    pickles = sorted(name for name in names if any(Path(name).match(pattern) for pattern in _PICKLES))
    if pickles:
        return (
            f"its weights are pickles alone ({', '.join(pickles[:3])}), which can run code as they are opened: convert "
            "them to safetensors (transformers' save_pretrained)"
        )
    return "there are no safetensors files in it: name what has them"


def _differences(tensors: dict[str, Stored], shapes: dict[str, tuple[int, ...]]) -> list[str]:
    problems = [f"{name} is missing" for name in shapes if name not in tensors]
    problems += [f"{name} is not a part of DBRX" for name in tensors if name not in shapes]
    for name, stored in tensors.items():
        if stored.shape != shapes.get(name, stored.shape):
            problems.append(f"{name} is {list(stored.shape)}, not {list(shapes[name])}")
        elif name in shapes and stored.dtype not in BYTES:
            problems.append(f"{name} is {stored.dtype}, not F32, BF16 or F16")
    return problems


def _local(name: str) -> Path | None:
    """The folder that is meant; None for what is a name on the hub."""
    refuse_path(KEY, name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    said = f"{KEY} is {name!r}"
    if path.exists():
        raise ConfigError(f"{said}, a file: name the folder that holds config.json and safetensors files")
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(f"{said}, but there is no such folder, and a name on the hub looks like databricks/dbrx-base")
    return None


def _from_hub(name: str, patterns: list[str]) -> Path:
    """The folder in the hub's cache with these files. Asks the hub where it can be asked."""
    from huggingface_hub import errors, snapshot_download

    said, offline = f"{KEY} is {name!r}", why_offline()
    try:
        if offline is None:
            _ask_hub(name)
        with quiet() if patterns == ["config.json"] else contextlib.nullcontext():
            return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline is not None))
    except errors.HFValidationError:
        raise ConfigError(f"{said}, which is neither a folder that is there nor a name on the hub") from None
    except errors.LocalEntryNotFoundError as error:  # an OSError too
        why = offline or first_line(error)
        raise ConfigError(
            f"{said}, which is no folder here, and not in the hub's cache; {why}: fetch it where there is a network "
            f"(hf download {name}), or name a folder"
        ) from None
    except (errors.HfHubHTTPError, OSError) as error:  # requests' errors are OSErrors
        raise ConfigError(f"{said}, but it cannot be fetched from the hub ({first_line(error)})") from None


def _ask_hub(name: str) -> None:
    """Raises ConfigError when the repository is not there, may not be read, or holds no safetensors DBRX."""
    import requests
    from huggingface_hub import HfApi, errors

    api, said = HfApi(), f"{KEY} is {name!r}"
    try:
        info = api.model_info(name, timeout=REQUEST_SECONDS)
        if info.gated:
            api.auth_check(name)
    except errors.GatedRepoError:
        raise ConfigError(
            f"{said}, to which the hub gives access on request only: ask for it on the model's page, and log in with "
            "`hf auth login` or HF_TOKEN"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(
            f"{said}, which is no folder here, and the hub has no such model, or not for you: look for a slip in the "
            "name; for a private one log in with `hf auth login` or HF_TOKEN"
        ) from None
    except (errors.HfHubHTTPError, requests.RequestException) as error:
        raise ConfigError(f"{said}, but the hub does not tell what it holds ({first_line(error)})") from None
    names = [file.rfilename for file in info.siblings or []]
    if not any(name.endswith(".safetensors") for name in names):
        raise ConfigError(f"{said}, but {_no_weights(names)}")
