"""What makes a save folder trustworthy: written to before it is needed, complete in itself, and never resumed by guess.

Beside its checkpoints a save folder holds `config.yaml`, the resolved config of the run, and `tokenizer/`, so that an
export or another machine needs nothing else.
"""

import re
import shutil
import tempfile
import zipfile
from pathlib import Path

from data.errors import ConfigError
from data.tokenizer import Tokenizer
from train.config import TrainConfig
from train.reader import to_yaml

_NAME = re.compile(r"ep(\d+)-ba(\d+)(-rank0\.pt)?")


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a save folder, oldest first; not what a killed run left half-written."""
    found = [(int(match[2]), path) for path in _entries(folder) if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found) if is_complete(path)]


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def is_complete(path: Path) -> bool:
    """Sharded: torch renames `.metadata` into place last, after every rank's file. Monolithic: a zip's end is read."""
    return (path / ".metadata").is_file() if path.is_dir() else path.is_file() and zipfile.is_zipfile(path)


def local_folder(config: TrainConfig, run_name: str) -> Path | None:
    """The save folder with run_name filled in. Raises ConfigError for a remote one or for another placeholder."""
    if config.save_folder is None:
        return None
    if "://" in config.save_folder:
        raise ConfigError(
            f"save_folder is {config.save_folder!r}, but checkpoints are written to a local or mounted folder for now: "
            "write a path and copy it to the object store"
        )
    try:
        return Path(config.save_folder.format(run_name=run_name))
    except (KeyError, IndexError, ValueError):
        raise ConfigError(f"save_folder is {config.save_folder!r}, but only {{run_name}} is filled in") from None


def prepare_save_folder(folder: Path, config: TrainConfig, tokenizer: Tokenizer) -> None:
    """Makes the folder and writes what belongs beside the checkpoints; for one rank, before anything is trained.

    Raises ConfigError when it cannot be written, or when it holds checkpoints that this run would neither go on from
    nor may overwrite.
    """
    present = checkpoints(folder)
    if present and not (config.autoresume or config.save_overwrite):
        raise ConfigError(
            f"save_folder {folder} holds {len(present)} checkpoint(s), the newest {present[-1].name}: write "
            "autoresume=true to go on from it, save_overwrite=true to delete them, or another run_name"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace_text(folder / "config.yaml", to_yaml(config))
        with tempfile.TemporaryDirectory(dir=folder) as made:
            tokenizer.save_pretrained(Path(made) / "tokenizer", config.max_seq_len)
            shutil.rmtree(folder / "tokenizer", ignore_errors=True)
            (Path(made) / "tokenizer").replace(folder / "tokenizer")
    except OSError as error:
        raise ConfigError(f"save_folder {folder} cannot be written: {error.strerror or error}") from None
    if not config.autoresume:
        for path in present:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _replace_text(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def check_load_path(config: TrainConfig) -> None:
    """Raises ConfigError when load_path is no checkpoint of the kind that fsdp_config.state_dict_type says."""
    if config.load_path is None:
        return
    path = Path(config.load_path)
    if not path.exists():
        raise ConfigError(f"load_path is {config.load_path!r}, but there is no such file or folder")
    if not is_complete(path):
        inside = [found.name for found in checkpoints(path)]
        hint = f"; it holds checkpoints: load_path={path / inside[-1]}" if inside else ""
        raise ConfigError(
            f"load_path is {config.load_path!r}, but it is no complete checkpoint (a folder such as ep0-ba100 with "
            f".metadata in it, or a .pt file){hint}"
        )
    sharded = config.fsdp_config is not None and config.fsdp_config.state_dict_type == "sharded"
    if sharded != path.is_dir():
        raise ConfigError(
            f"load_path is {config.load_path!r}, a {'sharded' if path.is_dir() else 'full'} checkpoint: write "
            f"fsdp_config.state_dict_type={'sharded' if path.is_dir() else 'full'}"
        )
