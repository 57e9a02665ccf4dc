"""The save folder: which checkpoints in it are complete, which run they belong to, and the files next to them.

Besides the checkpoints, a save folder contains `config.yaml`, the resolved config of the run, and `tokenizer/`, so that
an export requires no other files, even on another machine. Checkpoints of a run with lora contain only adapters. To
export them, the base is needed as well; `base.json` identifies it (see train/weights/frozen_base.py). Files in the
folder are written or deleted only after all checks of the run have passed.
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
from data.secrets.redaction import is_address
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
"""In a log folder: a file with a line for each start, checkpoint, evaluation and event of the run (see
docs/metrics.md)."""
METRICS = "metrics.jsonl"
"""In a log folder: a file with a line for each logged step."""
REPORT = "report.html"
"""In a log folder: an HTML report of the run."""
LOGS = (RECORD, METRICS, REPORT)

RUN = "run.json"
"""In a save folder: the id of the run that wrote its checkpoints, and hashes of the tokenizer's files."""
LATEST = "latest"
"""In a save folder: a link to the newest checkpoint."""
PART = ".part-"
"""Prefix of the names of files and folders that are not committed."""
INCIDENTS = "incidents"
"""In a save folder: batches whose loss or gradient was not finite (see train/stability/incidents.py)."""

_NAME = re.compile(r"ep\d+-ba(\d+)(?:-rank0\.pt)?")


def checkpoints(folder: Path) -> list[Path]:
    """The committed checkpoints in a save folder, oldest first. They may be corrupt."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in entries if _NAME.fullmatch(path.name) and is_complete(path)), key=batch_of)


def batch_of(checkpoint: Path) -> int:
    """The number of batches in the name of a checkpoint."""
    batch = named_batch(checkpoint)
    assert batch is not None
    return batch


def named_batch(path: Path) -> int | None:
    """The batch in the name of the path; None if the path does not have the name of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match is not None else None


def is_complete(path: Path) -> bool:
    """Whether a checkpoint was committed, which means that it has a manifest. A checkpoint that was written before
    manifests existed counts as committed if it is a folder that contains torch's index, or a single file that is a
    complete zip."""
    if not path.is_dir():
        return path.is_file() and zipfile.is_zipfile(path)
    return (path / MANIFEST).is_file() or ((path / METADATA).is_file() and not lacks_manifest(path))


def check_identity(checkpoint: Path, manifest: Manifest | None) -> None:
    """Raise CorruptCheckpointError if the batch in a checkpoint's manifest differs from the batch in its name, or the
    run in the manifest differs from that of the save folder."""
    batch = named_batch(checkpoint)
    if manifest is None or batch is None:
        return
    if manifest.batch != batch:
        raise CorruptCheckpointError(
            checkpoint, MANIFEST, f"belongs to batch {manifest.batch}, which is not the batch in the folder's name"
        )
    run_id = read_run_id(checkpoint.absolute().parent)
    if run_id is not None and manifest.run_id != run_id:
        defect = f"belongs to a different run ({manifest.run_name}) than {RUN} in the save folder"
        raise CorruptCheckpointError(checkpoint, MANIFEST, defect)


def unverified(checkpoint: Path) -> str:
    """The warning for a checkpoint without a manifest."""
    return f"{checkpoint} has no manifest (an earlier version wrote it), so it is not verified"


def read_run_id(folder: Path) -> str | None:
    """Return the id of the run that wrote the checkpoints in the folder; None if the id is not known."""
    return _read_run(folder).get("run_id")


def check_tokenizer(folder: Path) -> None:
    """Raise ConfigError if a tokenizer file next to the checkpoints differs from the file that the run wrote."""
    for name, expected in _read_run(folder).get("tokenizer", {}).items():
        path = folder / "tokenizer" / name
        with os_errors_named(path):
            found = digest_file(path).xxh3_128
        if found != expected:
            raise ConfigError(
                f"{path} differs from the file that the run wrote: restore it from a copy or, if you changed it "
                f"deliberately, "
                f"remove {folder / RUN}"
            )


def _read_run(folder: Path) -> dict[str, Any]:
    """Return the content of run.json. If the file is missing or damaged, return an empty dict, so that callers compare
    nothing."""
    try:
        values = json.loads((folder / RUN).read_bytes())
        return values["run"] if text_hash(json.dumps(values["run"], sort_keys=True)) == values["xxh3_128"] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _write_run(folder: Path, run_id: str) -> None:
    """Write run.json with the run id and the hashes of the tokenizer's files, which are already in the folder."""
    below = folder / "tokenizer"
    files = sorted(path for path in below.rglob("*") if path.is_file())
    run = {"run_id": run_id, "tokenizer": {str(path.relative_to(below)): digest_file(path).xxh3_128 for path in files}}
    text = json.dumps({"run": run, "xxh3_128": text_hash(json.dumps(run, sort_keys=True))}, indent=1)
    (folder / RUN).write_text(text + "\n")


def saved_config(checkpoint: Path) -> TrainConfig | None:
    """Return the config that a checkpoint was written with: the config in the checkpoint, or else the one in the save
    folder, or None if neither exists.

    Raises ConfigError if the config cannot be read, for example because it has keys that this version does not have.
    """
    found = _saved_yaml(checkpoint)
    return None if found is None else load_saved_config(found)


def saved_values(checkpoint: Path) -> dict[str, Any]:
    """Return the values in the config that a checkpoint was written with, including unknown keys. Raises ConfigError if
    the config is not valid YAML."""
    found = _saved_yaml(checkpoint)
    return {} if found is None else read(str(found)).tree


def _saved_yaml(checkpoint: Path) -> Path | None:
    places = (checkpoint / CONFIG, checkpoint.resolve().parent / CONFIG)
    return next((path for path in places if path.is_file()), None)


def run_name_of(config: TrainConfig) -> str:
    """Return the name of the run. Raises ConfigError if it is taken from $RUN_NAME and is not a valid name."""
    return config.run_name or run_name_of_environment() or time.strftime("dbrx-%Y%m%d-%H%M%S")


def local_folder(config: TrainConfig, run_name: str) -> Path | None:
    """The save folder on this machine, with run_name filled in. For a save folder in an object store, this is the
    staging folder. Raises ConfigError for other placeholders and for unknown types of object stores."""
    if config.save_folder is None:
        return None
    return fill_in(config.save_folder, run_name, "save_folder", config.save_staging_folder)


def fill_in(folder: str, run_name: str, key: str, staging: str) -> Path:
    """Return the folder on this machine for the value of a key, with run_name filled in. Raises the same errors as
    `local_folder`."""
    filled = fill_name(folder, run_name, key)
    if is_address(filled):
        if (defect := url_defect(filled)) is not None:
            raise ConfigError(defect, key=key)
        return folder_for(filled, staging)
    refuse_path(key, filled)
    return Path(filled)


def fill_name(folder: str, run_name: str, key: str) -> str:
    """Return the value of a key, which is a path or a URL, with run_name filled in. Raises ConfigError for other
    placeholders, or if run_name is not valid."""
    for named, defect in ((key, placeholder_defect(folder, "run_name")), ("run_name", name_defect(run_name))):
        if defect is not None:
            raise ConfigError(defect, key=named)
    return fill_placeholders(folder, {"run_name": run_name}).rstrip("/" if is_address(folder) else "")


def check_save_folder(folder: Path, config: TrainConfig) -> None:
    """Raise ConfigError if the folder is not writable, or contains checkpoints that this run neither resumes from nor
    may overwrite. Changes nothing in the folder.
    """
    present = checkpoints(folder)
    if present and not (config.autoresume or config.save_overwrite):
        raise ConfigError(
            f"save_folder {folder} contains {len(present)} checkpoint(s), the newest {present[-1].name}: set "
            "autoresume=true to resume from it, save_overwrite=true to delete them, or another run_name"
        )
    deletes = config.save_overwrite and not config.autoresume
    local = config.load_path is not None and not is_address(config.load_path)
    if deletes and config.load_path and local and Path(config.load_path).resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"is {config.load_path!r}, which save_overwrite would delete with the other checkpoints of "
            f"{folder}: set another run_name or save_folder",
            key="load_path",
        )
    check_writable(folder, "save_folder")


def check_writable(folder: Path, key: str) -> None:
    """Raise ConfigError if the folder that is the value of `key` is not writable or cannot be created."""
    there = existing_parent(folder)
    with (
        os_errors_named(f"{key} {folder}", "written", hint="specify another folder"),
        tempfile.TemporaryFile(dir=there),
    ):
        pass


def existing_parent(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())


def damaged(folder: Path) -> list[Path]:
    """Return the checkpoints in a save folder whose manifest is missing, oldest first. A killed run does not leave such
    checkpoints, because a folder is renamed to its final name after its manifest is written."""
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(
        (path for path in entries if _NAME.fullmatch(path.name) and lacks_manifest(path) and not is_complete(path)),
        key=batch_of,
    )


def leftovers(folder: Path) -> list[Path]:
    """Return partial files and folders of killed runs, and links of earlier versions, which are no longer updated."""
    kept = {*checkpoints(folder), *damaged(folder)}
    return sorted(
        path
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.name.startswith(PART)
        or path.name == "latest-rank0.pt"
        or (_NAME.fullmatch(path.name) and path not in kept)
    )


def recover(folder: Path) -> list[Path]:
    """Finish the replacement of checkpoints. If a run was killed after it had moved the old checkpoint away, the
    committed new checkpoint gets its final name. Return the renamed checkpoints. Must be called on one rank only, of
    the run that owns the folder."""
    recovered = []
    for path in leftovers(folder):
        place = path.with_name(path.name.removeprefix(PART))
        if _NAME.fullmatch(place.name) and (path / MANIFEST).is_file() and not place.exists():
            path.rename(place)
            recovered.append(place)
    return recovered


def remove_leftovers(folder: Path) -> list[Path]:
    """Delete the files and folders that `leftovers` returns, and return their paths. Must be called on one rank only,
    of the run that owns the folder."""
    found = leftovers(folder)
    with plain_os_errors(f"save_folder {folder}", "specify another save_folder"):
        for path in found:
            remove(path)
    return found


def furnish_save_folder(
    folder: Path, config: TrainConfig, tokenizer: "Tokenizer", *, run_id: str, resuming: bool
) -> None:
    """Write the files next to the checkpoints, and delete checkpoints according to save_overwrite. Must be called on
    one rank only."""
    what, again = "config.yaml and the tokenizer", "start again"
    with plain_os_errors(f"save_folder {folder}", "specify another save_folder", needed_for=what, again=again):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=PART) as made:
            tokenizer.save_pretrained(Path(made) / "tokenizer", config.max_seq_len)
            (Path(made) / "config.yaml").write_text(to_yaml(config))
            _write_run(Path(made), run_id)
            if not resuming:
                # Delete the checkpoints before run.json is written, because they are considered corrupt if run.json
                # contains the id of another run.
                for name in LOGS:
                    (folder / name).unlink(missing_ok=True)
                shutil.rmtree(folder / INCIDENTS, ignore_errors=True)
                for path in (*checkpoints(folder), *damaged(folder)):
                    remove(path)
            shutil.rmtree(folder / "tokenizer", ignore_errors=True)
            for name in ("tokenizer", "config.yaml", RUN):
                (Path(made) / name).replace(folder / name)


def remove(path: Path) -> None:
    """Delete a checkpoint or a leftover. It is renamed first, so a partly deleted folder never counts as a checkpoint.
    Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        if not path.name.startswith(PART):
            path = path.rename(path.with_name(f"{PART}removed-{path.name}-{uuid.uuid4().hex[:8]}"))
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
