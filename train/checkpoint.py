"""What makes a checkpoint trustworthy: complete, of this model, in a folder that is complete in itself.

Beside its checkpoints a save folder holds `config.yaml`, the resolved config of the run, and `tokenizer/`, so that an
export or another machine needs nothing else (of a run with lora, whose checkpoints hold adapters alone, the base, and
`base.json` that tells it from others: see train/hf/adapter.py). It is written to, and anything in it deleted, only when
the run that asks for it has been accepted in all its parts.
"""

import os
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException

from data.errors import ConfigError, said_plainly
from data.paths import refuse_path
from data.tokenizer import Tokenizer
from train.checkpoint_reader import CheckpointReader
from train.config import TrainConfig
from train.plan import adapter_shapes
from train.reader import load_saved_config, to_yaml
from train.typed import show

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
    before = path.resolve().parent / "config.yaml"
    if path.is_dir():
        reader = CheckpointReader(path)
        base = config.lora is not None and not reader.holds_adapters
        if base and whole_state:
            raise ConfigError(
                f"{said}, a whole model, of which a run with lora takes the weights alone, as its frozen base: write "
                "load_weights_only=true"
            )
        if reader.holds_adapters:
            _check_adapters(before, config, said)
        reader.check(config.model, "this config's model", None if base else config.lora)
    if whole_state:
        _check_meaning(before, config, said)


def frozen_base(config: TrainConfig) -> CheckpointReader | None:
    """The checkpoint of a whole model at load_path, which a run with lora takes as its base; None without one."""
    if config.lora is None or config.load_path is None:
        return None
    reader = CheckpointReader(Path(config.load_path))
    return None if reader.holds_adapters else reader


def _check_adapters(before: Path, config: TrainConfig, said: str) -> None:
    """Adapters of other shapes, told by the YAML's keys and not tensor by tensor."""
    was, now = load_saved_config(before).lora if before.is_file() else None, config.lora
    if was is None or now is None or adapter_shapes(config.model, was) == adapter_shapes(config.model, now):
        return
    keys = [key for key in ("r", "target_modules", "per_expert") if getattr(was, key) != getattr(now, key)]
    changed = [f"lora.{k} is {show(getattr(now, k))}, but the checkpoint's is {show(getattr(was, k))}" for k in keys]
    raise ConfigError(f"{said}: {'; '.join(changed)}: put it back, or train other adapters in another run")


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
    # The base is compared by its weights, in adapter.check_base.
    adapters = {} if lora is None else {"lora.alpha": lora.alpha}
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
        filled = folder.format(run_name=run_name)
    except (KeyError, IndexError, ValueError):
        raise ConfigError(f"{key} is {folder!r}, but only {{run_name}} is filled in") from None
    refuse_path(key, filled)
    return Path(filled)


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
    check_writable(folder, "save_folder")


def check_writable(folder: Path, key: str) -> None:
    """Raises ConfigError when the folder that a key names cannot be written, or made."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigError(f"{key} {folder} cannot be written: {error.strerror or error}: name another") from None


def furnish_save_folder(folder: Path, config: TrainConfig, tokenizer: Tokenizer, *, resuming: bool) -> None:
    """Writes what belongs beside the checkpoints; deletes those that save_overwrite gives up. For one rank."""
    what, again = "config.yaml and the tokenizer", "start again"
    with said_plainly(f"save_folder {folder}", "name another", needed_for=what, again=again):
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
