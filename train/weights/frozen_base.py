"""The frozen base of LoRA adapters: find its weights, and check that they are the weights that the adapters were
trained on."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from data.base.errors import ConfigError
from train.checkpoint.reader import CheckpointReader
from train.checkpoint.remote.staging import load_path_of
from train.config.schema import TrainConfig
from train.hf.repository import KEY, write_json
from train.hf.tensors import TensorSource
from train.models.config import ModelConfig
from train.models.init import draw_rows, init_std
from train.models.shapes import parameter_shapes
from train.weights.pretrained import PretrainedFolder

BASE = "base.json"
"""In the save folder of a run with lora: the fingerprint of the base. The base itself is not part of the
checkpoints."""


def frozen_weights(config: TrainConfig, opened: TensorSource | None = None) -> TensorSource:
    """Return the frozen base of a run with lora. opened: the base, if it is already open; it is then returned
    unchanged."""
    if opened is not None:
        return opened
    checkpoint, name = frozen_base(config), config.model.pretrained_model_name_or_path
    if checkpoint is not None:
        checkpoint.check(config.model, "the run's config")
        return checkpoint
    return DrawnWeights(config.model, config.seed) if name is None else PretrainedFolder.open(name, config.model)


def frozen_base(config: TrainConfig) -> CheckpointReader | None:
    """Return the checkpoint of a whole model at load_path, which a run with lora uses as its base. Return None if the
    base is not set by load_path."""
    if config.lora is None or (path := load_path_of(config)) is None:
        return None
    reader = CheckpointReader(path)
    return None if reader.holds_adapters else reader


class DrawnWeights:
    """The random initial weights of a run without pretrained weights, regenerated from the seed."""

    files: Sequence[Path] = ()

    def __init__(self, model: ModelConfig, seed: int) -> None:
        self.model, self.seed = model, seed
        self.shapes = parameter_shapes(model)

    def pieces(self, name: str, dtype: torch.dtype) -> None:
        return None

    def rows(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        out.copy_(draw_rows(self.seed, name, self.shapes[name], start, stop, init_std(self.model, name)))


def note_base(folder: Path, base: TensorSource) -> None:
    """Write the base's fingerprint into a save folder."""
    part = folder / f".{BASE}.part"
    write_json(part, {"fingerprint": fingerprint(base)})
    part.replace(folder / BASE)


def check_base(checkpoint: Path, base: TensorSource, config: TrainConfig) -> None:
    """Raise ConfigError if the adapters in the checkpoint were trained on a different base.

    Does nothing if there is no fingerprint from `note_base` next to the checkpoint.
    """
    noted = checkpoint.resolve().parent / BASE
    if not noted.is_file():
        return
    try:
        then = json.loads(noted.read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{noted} cannot be read: {error!r}") from None
    if then != fingerprint(base):
        name = config.model.pretrained_model_name_or_path
        whose = f"the one drawn from seed {config.seed}" if name is None else f"the one in {name} ({KEY})"
        if frozen_base(config) is not None:
            whose = f"the one in {config.load_path} (load_path)"
        raise ConfigError(
            f"{checkpoint} contains adapters that were trained on a different base than {whose}: restore the original "
            f"base, or specify its path"
        )


def fingerprint(base: TensorSource) -> str:
    """Return a hash of the first and the last row of every tensor, in fp32. The hash does not depend on the location of
    the weights."""
    digest = hashlib.blake2b(digest_size=16)
    for name, shape in sorted(base.shapes.items()):
        digest.update(name.encode())
        for row in (0, shape[0] - 1):
            numbers = torch.empty(1, *shape[1:])
            base.rows(name, row, row + 1, numbers)
            digest.update(numbers.numpy().tobytes())
    return digest.hexdigest()
