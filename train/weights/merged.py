"""The complete weights of a checkpoint. LoRA adapters are merged into their base, a few rows at a time."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from data.base.console import logger
from data.base.errors import ConfigError
from train.checkpoint.reader import CheckpointReader
from train.checkpoint.save_folder import check_identity, unverified
from train.checkpoint.storage.manifest import CONFIG
from train.config.load import load_saved_config
from train.config.schema import TrainConfig
from train.hf.raw_rows import Piece
from train.hf.tensors import TensorSource
from train.models.config import LoraConfig, ModelConfig
from train.models.shapes import adapted_shapes, adapter_name, is_fused, parameter_shapes
from train.weights.frozen_base import check_base, frozen_weights


def open_checkpoint_and_config(checkpoint: Path) -> tuple[CheckpointReader, TrainConfig]:
    """Open a checkpoint and the config that it was written with. Logs a warning if the checkpoint is not verified.

    Raises ConfigError, for example if the batch of the checkpoint differs from the batch in its name, or if the run of
    the checkpoint differs from the run of its folder.
    """
    reader = CheckpointReader(checkpoint)
    check_identity(checkpoint, reader.manifest)
    if reader.manifest is None:
        logger.warning(unverified(checkpoint))
    return reader, _config_of(reader)


def _config_of(reader: CheckpointReader) -> TrainConfig:
    """Return the config that a checkpoint was written with. This config is stored in the checkpoint or, for checkpoints
    of earlier versions, in the save folder. With lora, the location of the base is taken from the config in the save
    folder."""
    beside = reader.checkpoint.parent / CONFIG
    if reader.manifest is None or CONFIG not in reader.manifest.files:
        return load_saved_config(beside)
    reader.read_file(CONFIG)
    config = load_saved_config(reader.checkpoint / CONFIG)
    if config.lora is None or not beside.is_file():
        return config
    now = load_saved_config(beside)
    model = replace(config.model, pretrained_model_name_or_path=now.model.pretrained_model_name_or_path)
    return replace(config, model=model, load_path=now.load_path)


def whole_weights(reader: CheckpointReader, config: TrainConfig) -> TensorSource:
    """Return the complete weights of a checkpoint. If the checkpoint contains adapters, they are merged into their
    base.

    Raises ConfigError if the checkpoint is incomplete or does not match the config, or if the base does not exist.
    """
    beside = reader.checkpoint.parent / "config.yaml"
    reader.check(config.model, str(beside), config.lora)
    if config.lora is None:
        return reader
    try:
        base = frozen_weights(config)
    except ConfigError as error:
        raise ConfigError(
            f"{reader.checkpoint} contains only adapters, and their base cannot be read: {error}; if the base was "
            f"moved, set its new path in {beside}"
        ) from None
    check_base(reader.checkpoint, base, config)
    return MergedWeights(base, reader, config.model, config.lora)


class MergedWeights:
    """For weights with an adapter: W + alpha / r * B A, computed in fp32. For other weights: the values of the base."""

    def __init__(self, base: TensorSource, adapters: CheckpointReader, model: ModelConfig, lora: LoraConfig) -> None:
        self.base, self.adapters, self.lora = base, adapters, lora
        self.shapes = parameter_shapes(model)
        self.files = [*base.files, *adapters.files]
        self._adapted = set(adapted_shapes(model, lora))
        self._F = model.ffn_config.ffn_hidden_size
        self._held = "", torch.empty(0)

    def pieces(self, name: str, dtype: torch.dtype) -> Sequence[Piece] | None:
        return None if name in self._adapted else self.base.pieces(name, dtype)

    def rows(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        if name not in self._adapted:
            self.base.rows(name, start, stop, out)
            return
        merged = torch.empty(out.shape, dtype=torch.float32)
        self.base.rows(name, start, stop, merged)
        place, r = adapter_name(name), self.lora.r
        B = torch.empty(stop - start, r)
        self.adapters.rows(f"{place}.lora_B", start, stop, B)
        # If each expert has its own A, use the matrices of the experts that these rows belong to.
        height = self._F if self.lora.per_expert and is_fused(name) else self.shapes[name][0]
        for expert in range(start // height, math.ceil(stop / height)):
            mine = slice(max(expert * height - start, 0), min((expert + 1) * height, stop) - start)
            merged[mine].addmm_(B[mine], self._A(f"{place}.lora_A", expert, out.shape[1]), alpha=self.lora.scale)
        out.copy_(merged)

    def _A(self, name: str, expert: int, width: int) -> torch.Tensor:
        """Return the A matrix of an expert. The matrix is read only once for consecutive blocks of rows that need
        it."""
        held = self._held  # a single read, because other threads may replace the value
        if held[0] != f"{name} {expert}":
            A, r = torch.empty(self.lora.r, width), self.lora.r
            self.adapters.rows(name, expert * r, (expert + 1) * r, A)
            self._held = held = f"{name} {expert}", A
        return held[1]
