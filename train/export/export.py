"""Export a checkpoint as a Hugging Face folder of a standard DBRX model. Only a few rows are in memory at a time.

Parameter names and shapes are the same as in Hugging Face (see train/models/shapes.py), so the export copies tensors
without changing their layout. It adds config.json, the index, a model card, and the tokenizer's files, which the run
wrote next to its checkpoints.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from data.base.console import logger
from data.base.errors import ConfigError, cannot_be, from_here
from data.base.locks import exclusive_unless
from data.base.sizes import format_bytes
from data.hub.repository_files import check_saved_tokenizer
from train.checkpoint.places import resolve_save_folder
from train.checkpoint.save_folder import check_tokenizer, check_writable, checkpoints, is_complete
from train.config.schema import TrainConfig
from train.export.model_card import model_card
from train.export.writer import MAX_SHARD_BYTES, write_weights
from train.hf.config_json import config_json
from train.hf.repository import write_json
from train.hf.tensors import TensorSource, n_bytes
from train.models.precision import FORMATS, Precision
from train.models.shapes import parameter_shapes
from train.weights.merged import open_checkpoint_and_config, whole_weights

EXIT_NOT_FINITE = 3
"""Exit code of train/export/verify.py if the checkpoint's own weights are not finite."""
_ORDER = ".export.json"
_LOCK = ".lock"


class Run(NamedTuple):
    """The inputs of an export from a save folder."""

    checkpoint: Path
    config: TrainConfig
    tokenizer: Path
    """The folder of the tokenizer."""
    generation: dict[str, Any]
    """The content of the tokenizer's generation_config.json."""
    source: TensorSource


def export(
    checkpoint: Path,
    output: Path,
    precision: Precision = "fp32",
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    verify: bool = False,
) -> None:
    """Export the checkpoint, or the newest one in a save folder, to a folder that unmodified transformers can load.

    The output is created once it is complete and, with verify, has been verified (see verify.py). Until then, the files
    are in a hidden folder next to it. If the call is killed or the disk is full, a later call with the same arguments
    continues from that folder.

    Raises ConfigError, without creating the output, if the checkpoint or a file next to it is missing or incomplete, if
    its tensors are not those of a standard DBRX model with its config, if the output is not empty or cannot be written,
    or if the verification fails.
    """
    output = output.absolute()
    _check_output(output)
    check_writable(output, "the output")
    run = open_run(checkpoint)
    part = output.with_name(f".{output.name}.part")
    order = {
        "files": [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in run.source.files],
        "precision": precision,
        "max_shard_bytes": max_shard_bytes,
    }
    try:
        _check_space(part, run, precision)
        part.mkdir(parents=True, exist_ok=True)
        with exclusive_unless(part / _LOCK, lambda: True) as held:
            if not held:
                raise ConfigError(
                    f"another export to {output} is running: wait until it ends, or specify another output"
                )
            _begin(part, order)
            _write(part, run, precision, max_shard_bytes)
            if verify:
                _verify(part, run.checkpoint, output)
            for name in (_ORDER, _LOCK):
                (part / name).unlink()
            part.rename(output)
    except OSError as error:
        kept = (
            f"; the partial export remains in {part}, and the same command continues the export"
            if part.exists()
            else ""
        )
        raise ConfigError(f"{cannot_be('written', f'the output {output}', error)}{kept}") from error


def open_run(checkpoint: Path) -> Run:
    """Open the inputs of an export. Raises ConfigError unless the checkpoint is complete, and the other files that an
    export needs are next to the checkpoint."""
    checkpoint = find_checkpoint(checkpoint)
    config, tokenizer = checkpoint.parent / "config.yaml", checkpoint.parent / "tokenizer"
    generation = tokenizer / "generation_config.json"
    for file, why in ((config, "the model's shape"), (generation, "the tokenizer")):
        if not file.is_file():
            raise ConfigError(
                f"{file} does not exist, but the export reads {why} from it: copy the files that the run wrote next to "
                "its checkpoints"
            )
    check_saved_tokenizer(tokenizer)
    check_tokenizer(checkpoint.parent)
    reader, resolved = open_checkpoint_and_config(checkpoint)
    source = whole_weights(reader, resolved)
    return Run(checkpoint, resolved, tokenizer, json.loads(generation.read_text(encoding="utf-8")), source)


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a path refers to: the path itself, the target of a link, or the newest complete
    checkpoint of a save folder. For a run's folder, the save folder in it is used."""
    real = resolve_save_folder(path.resolve())
    if real.is_dir() and is_complete(real):
        return real
    inside = [found for found in checkpoints(real) if found.is_dir()]
    if inside:
        return inside[-1]
    raise ConfigError(
        f"{path} is neither a checkpoint (a folder such as ep0-ba100 that contains manifest.json) nor a folder of "
        f"checkpoints: it {_describe(path)}"
    )


def _describe(path: Path) -> str:
    if not path.exists():
        missing = f"does not exist{from_here(path)}"
        return f"is a link to {path.readlink()}, which does not exist" if path.is_symlink() else missing
    if path.is_file():
        earlier = (
            "; resume the run from this file, and export the next checkpoint of the run" if path.suffix == ".pt" else ""
        )
        return f"is a file{earlier}"
    names = sorted(entry.name for entry in path.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"is a folder that contains {', '.join(names[:5])}{more}" if names else "is an empty folder"


def _check_output(output: Path) -> None:
    if output.is_dir() and any(output.iterdir()):
        raise ConfigError(f"the output folder {output} is not empty: specify a new folder, or empty this one")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"the output {output} is a file, but it must be a folder: specify another output")


def _begin(part: Path, order: dict[str, Any]) -> None:
    """Keep the files of an earlier call with the same arguments, and delete the files of any other call."""
    file = part / _ORDER
    if file.is_file() and file.read_text(encoding="utf-8") == json.dumps(order):
        done = len(list(part.glob("*.safetensors")))
        logger.info(f"continuing in {part}, where {done} weight files are complete")
        return
    for entry in part.iterdir():
        if entry.name != _LOCK:
            entry.unlink() if entry.is_file() else shutil.rmtree(entry)
    file.write_text(json.dumps(order), encoding="utf-8")


def _check_space(part: Path, run: Run, precision: Precision) -> None:
    needed = sum(n_bytes(shape, precision) for shape in parameter_shapes(run.config.model).values())
    there = sum(file.stat().st_size for file in part.iterdir()) if part.is_dir() else 0
    free = shutil.disk_usage(next(parent for parent in part.parents if parent.exists())).free
    if free + there < needed:
        has = f"{part.parent} has {format_bytes(free, down=True)} free"
        hint = "free some space, or specify an output on another disk"
        raise ConfigError(f"the export needs {format_bytes(needed - there)}, but {has}: {hint}")


def _write(part: Path, run: Run, precision: Precision, max_shard_bytes: int) -> None:
    try:
        write_weights(run.source, part, parameter_shapes(run.config.model), precision, max_shard_bytes)
    except ConfigError:
        # The source of the tensors is damaged, so no later call can continue.
        shutil.rmtree(part)
        raise
    write_json(part / "config.json", config_json(run.config.model, run.generation, FORMATS[precision].dtype))
    (part / "README.md").write_text(model_card(run.checkpoint, run.config, precision), encoding="utf-8")
    shutil.copytree(run.tokenizer, part, dirs_exist_ok=True)


def _verify(part: Path, checkpoint: Path, output: Path) -> None:
    """Verify the export in a separate process, which shares no state with the process that wrote it."""
    root = str(Path(__file__).resolve().parents[2])
    # The process is not a rank of a run and does not use a GPU.
    env = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    env |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))}
    command = [sys.executable, "-m", "train.export.verify", str(part), "--composer_path", str(checkpoint)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        raise ConfigError(
            f"{output} was not created: its verification was killed by signal {-done.returncode} (signal 9 usually "
            f"means too little memory); the partial export remains in {part}, and the same command continues the export"
        )
    if done.returncode == EXIT_NOT_FINITE:
        shutil.rmtree(part)
        raise ConfigError(f"{output} was not created: {done.stderr.rpartition('error: ')[2].strip()}")
    if done.returncode:
        message = done.stderr.rpartition("error: ")[2].strip() or done.stdout
        raise ConfigError(
            f"the export failed its verification, and {output} was not created: {message} (the exported files are in "
            f"{part}: delete them and export again)"
        )
    logger.info(done.stdout.rstrip("\n"))
