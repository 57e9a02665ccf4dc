"""What makes a checkpoint trustworthy: complete, of this model, in a folder that is complete in itself.

Beside its checkpoints a save folder holds `config.yaml`, the resolved config of the run, and `tokenizer/`, so that an
export or another machine needs nothing else (of a run with lora, whose checkpoints hold adapters alone, the base, and
`base.json` that tells it from others: see train/weights/frozen_base.py). It is written to, and anything in it deleted,
only when the run that asks for it has been accepted in all its parts.
"""

import json
import re
import shutil
import tempfile
import time
import uuid
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.base.errors import ConfigError, os_errors_named, plain_os_errors
from data.base.paths import fill_placeholders, name_defect, placeholder_defect, refuse_path
from data.base.redaction import is_address
from data.stores.address import folder_for, url_defect
from train.checkpoint.storage.digests import digest_file, text_hash
from train.checkpoint.storage.manifest import (
    CONFIG,
    MANIFEST,
    METADATA,
    CorruptCheckpointError,
    Manifest,
    lacks_manifest,
)
from train.config.load import load_saved_config, to_yaml
from train.config.ranks import run_name_of_environment
from train.config.reading.yaml_file import read
from train.config.schema import TrainConfig

if TYPE_CHECKING:
    from data.tokenization.tokenizer import Tokenizer

RECORD = "record.jsonl"
"""In a save folder: a line for each start, checkpoint, evaluation and event of the run (see docs/metrics.md)."""
METRICS = "metrics.jsonl"
"""In a log folder: a line for each step."""
REPORT = "report.html"
"""In a log folder: the run, drawn."""
LOGS = (RECORD, METRICS, REPORT)

RUN = "run.json"
"""In a save folder: what identifies the run whose checkpoints are in it, and hashes of the tokenizer's files."""
LATEST = "latest"
"""In a save folder: a link to the newest checkpoint."""
PART = ".part-"
"""Begins the names of what is not committed."""
INCIDENTS = "incidents"
"""In a save folder: batches whose loss or gradient was not finite (see train/stability/incidents.py)."""

_NAME = re.compile(r"ep\d+-ba(\d+)(?:-rank0\.pt)?")


def checkpoints(folder: Path) -> list[Path]:
    """The committed checkpoints in a save folder, oldest first. They may be corrupt."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in entries if _NAME.fullmatch(path.name) and is_complete(path)), key=batch_of)


def batch_of(checkpoint: Path) -> int:
    """The batch that its name says."""
    batch = named_batch(checkpoint)
    assert batch is not None
    return batch


def named_batch(path: Path) -> int | None:
    """The same of any path; None where the name is not that of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match is not None else None


def is_complete(path: Path) -> bool:
    """Whether it was committed: it has a manifest. Of those written before there were manifests a folder has torch's
    index, and a file is a whole zip."""
    if not path.is_dir():
        return path.is_file() and zipfile.is_zipfile(path)
    return (path / MANIFEST).is_file() or ((path / METADATA).is_file() and not lacks_manifest(path))


def check_identity(checkpoint: Path, manifest: Manifest | None) -> None:
    """Raises CorruptCheckpointError when a checkpoint in a save folder is that of another batch or run."""
    batch = named_batch(checkpoint)
    if manifest is None or batch is None:
        return
    if manifest.batch != batch:
        raise CorruptCheckpointError(checkpoint, MANIFEST, f"is that of batch {manifest.batch}")
    run_id = read_run_id(checkpoint.absolute().parent)
    if run_id is not None and manifest.run_id != run_id:
        defect = f"is that of another run ({manifest.run_name}) than {RUN} beside it"
        raise CorruptCheckpointError(checkpoint, MANIFEST, defect)


def unverified(checkpoint: Path) -> str:
    """A warning."""
    return f"{checkpoint} has no manifest (it is of an earlier version): it is not verified"


def read_run_id(folder: Path) -> str | None:
    """What identifies the run in all its checkpoints; None where nothing says it."""
    return _read_run(folder).get("run_id")


def check_tokenizer(folder: Path) -> None:
    """Raises ConfigError when a file of the tokenizer beside the checkpoints is not what the run has written."""
    for name, expected in _read_run(folder).get("tokenizer", {}).items():
        path = folder / "tokenizer" / name
        with os_errors_named(path):
            found = digest_file(path).xxh3_128
        if found != expected:
            raise ConfigError(
                f"{path} has other bytes than the run has written: restore it from a copy, or, if it was changed on "
                f"purpose, remove {folder / RUN}"
            )


def _read_run(folder: Path) -> dict[str, Any]:
    """Empty where there is none, or it is damaged: nothing can be compared with it then."""
    try:
        values = json.loads((folder / RUN).read_bytes())
        return values["run"] if text_hash(json.dumps(values["run"], sort_keys=True)) == values["xxh3_128"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_run(folder: Path, run_id: str) -> None:
    """Of a folder that has the tokenizer."""
    below = folder / "tokenizer"
    files = sorted(path for path in below.rglob("*") if path.is_file())
    run = {"run_id": run_id, "tokenizer": {str(path.relative_to(below)): digest_file(path).xxh3_128 for path in files}}
    text = json.dumps({"run": run, "xxh3_128": text_hash(json.dumps(run, sort_keys=True))}, indent=1)
    (folder / RUN).write_text(text + "\n")


def saved_config(checkpoint: Path) -> TrainConfig | None:
    """The config that a checkpoint was written with: its own, else the save folder's; None where there is neither.

    Raises ConfigError when it cannot be read, such as one with keys that this code does not have.
    """
    found = _saved_yaml(checkpoint)
    return None if found is None else load_saved_config(found)


def saved_values(checkpoint: Path) -> dict[str, Any]:
    """What stands in that config, whatever keys it has. Raises ConfigError when it is no YAML."""
    found = _saved_yaml(checkpoint)
    return {} if found is None else read(str(found)).tree


def _saved_yaml(checkpoint: Path) -> Path | None:
    places = (checkpoint / CONFIG, checkpoint.resolve().parent / CONFIG)
    return next((path for path in places if path.is_file()), None)


def run_name_of(config: TrainConfig) -> str:
    """Raises ConfigError when it is $RUN_NAME, and that is no name."""
    return config.run_name or run_name_of_environment() or time.strftime("dbrx-%Y%m%d-%H%M%S")


def local_folder(config: TrainConfig, run_name: str) -> Path | None:
    """The save folder on this machine, with run_name filled in: of one in an object store the staging folder. Raises
    ConfigError for another placeholder, or another kind of store."""
    if config.save_folder is None:
        return None
    return fill_in(config.save_folder, run_name, "save_folder", config.save_staging_folder)


def fill_in(folder: str, run_name: str, key: str, staging: str) -> Path:
    """The folder on this machine for one that a key names, with run_name filled in; ConfigError as of
    `local_folder`."""
    filled = fill_name(folder, run_name, key)
    if is_address(filled):
        if (defect := url_defect(filled)) is not None:
            raise ConfigError(defect, key=key)
        return folder_for(filled, staging)
    refuse_path(key, filled)
    return Path(filled)


def fill_name(folder: str, run_name: str, key: str) -> str:
    """The same as it is written: a path or a URL."""
    for named, defect in ((key, placeholder_defect(folder, "run_name")), ("run_name", name_defect(run_name))):
        if defect is not None:
            raise ConfigError(defect, key=named)
    return fill_placeholders(folder, {"run_name": run_name}).rstrip("/" if is_address(folder) else "")


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
    local = config.load_path is not None and not is_address(config.load_path)
    if deletes and config.load_path and local and Path(config.load_path).resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"is {config.load_path!r}, which save_overwrite would delete with the other checkpoints of "
            f"{folder}: write another run_name or save_folder",
            key="load_path",
        )
    check_writable(folder, "save_folder")


def check_writable(folder: Path, key: str) -> None:
    """Raises ConfigError when the folder that a key names cannot be written, or made."""
    there = existing_parent(folder)
    with (
        os_errors_named(f"{key} {folder}", "written", hint="name another"),
        tempfile.TemporaryFile(dir=there),
    ):
        pass


def existing_parent(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def damaged(folder: Path) -> list[Path]:
    """Folders in a save folder that have lost their manifest: a checkpoint gets its name when it has one, so no killed
    run leaves such a folder. Oldest first."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(
        (path for path in entries if _NAME.fullmatch(path.name) and lacks_manifest(path) and not is_complete(path)),
        key=batch_of,
    )


def leftovers(folder: Path) -> list[Path]:
    """What killed runs have left half-written, and a link of earlier versions that nothing updates any more."""
    kept = {*checkpoints(folder), *damaged(folder)}
    return sorted(
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name.startswith(PART)
        or path.name == "latest-rank0.pt"
        or (_NAME.fullmatch(path.name) and path not in kept)
    )


def recover(folder: Path) -> list[Path]:
    """Gives committed checkpoints their names that a run had when it was killed between moving the one before it away
    and renaming it; returns them. For one rank, whose run owns the folder."""
    recovered = []
    for path in leftovers(folder):
        place = path.with_name(path.name.removeprefix(PART))
        if _NAME.fullmatch(place.name) and (path / MANIFEST).is_file() and not place.exists():
            path.rename(place)
            recovered.append(place)
    return recovered


def remove_leftovers(folder: Path) -> list[Path]:
    """Deletes them, and returns what it has deleted. For one rank, whose run owns the folder."""
    found = leftovers(folder)
    with plain_os_errors(f"save_folder {folder}", "name another save_folder"):
        for path in found:
            remove(path)
    return found


def furnish_save_folder(
    folder: Path, config: TrainConfig, tokenizer: "Tokenizer", *, run_id: str, resuming: bool
) -> None:
    """Writes what belongs beside the checkpoints; deletes those that save_overwrite gives up. For one rank."""
    what, again = "config.yaml and the tokenizer", "start again"
    with plain_os_errors(f"save_folder {folder}", "name another save_folder", needed_for=what, again=again):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=PART) as made:
            tokenizer.save_pretrained(Path(made) / "tokenizer", config.max_seq_len)
            (Path(made) / "config.yaml").write_text(to_yaml(config))
            _write_run(Path(made), run_id)
            if not resuming:
                # Before run.json: checkpoints of another run than it names cannot be resumed from.
                for name in LOGS:
                    (folder / name).unlink(missing_ok=True)
                shutil.rmtree(folder / INCIDENTS, ignore_errors=True)
                for path in (*checkpoints(folder), *damaged(folder)):
                    remove(path)
            shutil.rmtree(folder / "tokenizer", ignore_errors=True)
            for name in ("tokenizer", "config.yaml", RUN):
                (Path(made) / name).replace(folder / name)


def remove(path: Path) -> None:
    """Deletes a checkpoint, or what is left of one. It is gone at once: what a killed process leaves of it is no
    checkpoint. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        if not path.name.startswith(PART):
            path = path.rename(path.with_name(f"{PART}removed-{path.name}-{uuid.uuid4().hex[:8]}"))
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
