"""Faults: pickles that execute code when they are unpickled, in every part of a checkpoint that is unpickled."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from scripts.bench.faults.checkpoints import NEWEST
from scripts.bench.faults.damage import (
    GOLDEN,
    PAYLOAD,
    commit_again,
    plant_in_item,
    plant_in_metadata,
    write_planted_file,
)
from scripts.bench.faults.processes import Ended, run
from scripts.bench.faults.runs import CRASHED, NO_END, Case, Lab

_NOT_RUN = "code not run, error names the function"


def _seen(ended: Ended, canary: Path) -> str:
    if canary.exists():
        return "code run"
    if ended.code is None:
        return NO_END
    if ended.crashed:
        return CRASHED
    return _NOT_RUN if PAYLOAD in ended.text else "code not run, error does not name the function"


def _of_metadata(command: Callable[[Lab, Path], Ended], lab: Lab) -> Iterator[str]:
    copy, canary = lab.copy(), lab.new() / "canary"
    plant_in_metadata(copy / NEWEST, canary)
    commit_again(copy / NEWEST)
    yield _seen(command(lab, copy), canary)


def _resume(lab: Lab, copy: Path) -> Ended:
    return lab.resume(copy)


def _load_weights(lab: Lab, copy: Path) -> Ended:
    return _load(lab, copy / NEWEST, "load_weights_only=true")


def _export(lab: Lab, copy: Path) -> Ended:
    return lab.export(copy, lab.new() / "hf")


def _generate(lab: Lab, copy: Path) -> Ended:
    return run("scripts/generate.py", str(copy), "amber", "--max_new_tokens", "2", "--device", "cpu")


def _load(lab: Lab, path: Path, *overrides: str) -> Ended:
    flags = (f"load_path={path}", f"save_folder={lab.new()}", "max_duration=8ba")
    return run("train.py", lab.config, *flags, *overrides)


def _of_item(path: tuple, lab: Lab) -> Iterator[str]:
    folder = lab.new()
    canary, copy = folder / "canary", folder / "run"
    shutil.copytree(GOLDEN / "run", copy)
    plant_in_item(copy / "ep0-ba4", path, canary)
    flags = (
        f"save_folder={copy}",
        f"train_loader.dataset.local={GOLDEN / 'rows' / 'train'}",
        f"tokenizer.kwargs.vocab_file={GOLDEN / 'vocab.tiktoken'}",
    )
    yield _seen(run("train.py", str(GOLDEN / "config.yaml"), "autoresume=true", *flags), canary)


def _of_file(lab: Lab, *overrides: str) -> Iterator[str]:
    folder = lab.new()
    write_planted_file(folder / "ep0-ba4-rank0.pt", folder / "canary")
    yield _seen(_load(lab, folder / "ep0-ba4-rank0.pt", *overrides), folder / "canary")


def _of_file_weights(lab: Lab) -> Iterator[str]:
    yield from _of_file(lab, "load_weights_only=true")


_METADATA = {
    "resume": _resume,
    "load_weights_only": _load_weights,
    "export": _export,
    "generate": _generate,
}
_ITEMS = {
    "random state": ("rng",),
    "position": ("state", "dataset_state"),
    "saver's state": ("state", "callbacks", "CheckpointSaver"),
}

CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        *(
            Case(f"pickle in .metadata, {name}", _NOT_RUN, partial(_of_metadata, what))
            for name, what in _METADATA.items()
        ),
        *(
            Case(f"pickle in the {name} (earlier version)", _NOT_RUN, partial(_of_item, path))
            for name, path in _ITEMS.items()
        ),
        Case("pickle in a full checkpoint", _NOT_RUN, _of_file),
        Case("pickle in a full checkpoint, load_weights_only", _NOT_RUN, _of_file_weights),
    )
}
