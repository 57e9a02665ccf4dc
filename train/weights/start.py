"""What a run starts from: the checkpoint that autoresume or load_path means, checked before anything is built."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from data.base.errors import ConfigError
from train.checkpoint.reader import CheckpointReader
from train.checkpoint.save_folder import check_save_folder, checkpoints, is_complete
from train.config.schema import TrainConfig
from train.resume.explain import refuse_changes
from train.weights.frozen_base import frozen_base
from train.weights.pretrained import PretrainedFolder


@dataclass(frozen=True, kw_only=True)
class Start:
    """The checkpoint that a run starts from."""

    path: Path
    data_state: Mapping[str, str] | None
    """What the training data's `state_dict` was (see RowPlan.state), where the run goes on from there, with optimizer
    and random state; None where it takes the weights alone."""
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
            check_start(newest, config, "autoresume", whole_state=True)
            return Start(path=newest, data_state=_data_state(newest), resuming=True)
    if config.load_path is None:
        return None
    path = Path(config.load_path)
    check_start(path, config, "load_path", whole_state=not config.load_weights_only)
    if frozen_base(config) is not None:
        return None
    return Start(path=path, data_state=None if config.load_weights_only else _data_state(path), resuming=False)


StartingWeights = PretrainedFolder | CheckpointReader


def open_weights(config: TrainConfig, start: Start | None) -> StartingWeights | None:
    """Where the model's weights come from that the start does not bring; None: from nowhere, or they are drawn.

    A checkpoint of a whole model brings all, one of adapters all but their base. From the hub the files are fetched.
    """
    if start is not None and config.lora is None:
        return None
    if (base := frozen_base(config)) is not None:
        base.check(config.model, "the run's config")
        return base
    name = config.model.pretrained_model_name_or_path
    return PretrainedFolder.open(name, config.model) if name is not None else None


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


def check_start(path: Path, config: TrainConfig, key: str, *, whole_state: bool) -> None:
    """Raises ConfigError when a run of this config cannot start from the checkpoint that `key` names.

    With whole_state, going on from it and not from its weights alone, nothing may have changed that cannot change.
    """
    subject = f"is {str(path)!r}" if key == "load_path" else f"is true, and the newest checkpoint is {str(path)!r}"
    if "://" in str(path):
        raise ConfigError(
            f"{subject}, but checkpoints are read from a local or mounted folder for now: copy it there", key=key
        )
    if not path.exists():
        raise ConfigError(f"{subject}, but there is no such file or folder", key=key)
    if not is_complete(path):
        inside = [found.name for found in checkpoints(path)]
        hint = f"; it holds checkpoints: {path / inside[-1]}" if inside else ""
        raise ConfigError(
            f"{subject}, but it is no complete checkpoint (a folder such as ep0-ba100 with .metadata in it, or a .pt "
            f"file){hint}",
            key=key,
        )
    refuse_changes(path, config, _readable_state(path) if whole_state else None, key, whole_state=whole_state)
    there = "sharded" if path.is_dir() else "full"
    wanted = config.fsdp_config.state_dict_type if config.fsdp_config is not None else "full"
    if there != wanted:
        hint = f"fsdp_config.state_dict_type={there}" if config.fsdp_config else "fsdp_config={}"
        raise ConfigError(
            f"{subject}, a {there} checkpoint, but this run reads and writes {wanted} ones: write {hint}", key=key
        )
    if path.is_dir():
        reader = CheckpointReader(path)
        base = config.lora is not None and not reader.holds_adapters
        if base and whole_state:
            raise ConfigError(
                f"{subject}, a whole model, of which a run with lora takes the weights alone, as its frozen base: "
                "write load_weights_only=true",
                key=key,
            )
        reader.check(config.model, "this config's model", None if base else config.lora)


def _readable_state(path: Path) -> dict[str, str] | None:
    """None where the checkpoint is damaged, which is reported by those that read it next."""
    with contextlib.suppress(Exception):
        return _data_state(path)
    return None
