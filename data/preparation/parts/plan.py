"""The plan of a preparation: the slices of the source, and the form of its rows. All tasks use the same plan, so the
result does not depend on where and in which order the tasks run."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data.base.errors import DataError
from data.base.workers import map_in_order
from data.config.dataset import DatasetConfig
from data.examples.examples import Reading, read_examples
from data.examples.preprocessing import is_own
from data.mds.writer import (
    PARTS,
    PLAN,
    UNFINISHED,
    MadeFrom,
    done_slices,
    read_json,
    refuse_names_in_the_way,
    refuse_other,
    write_text,
)
from data.preparation.packing.recipe import Recipe
from data.sources.slices import Slice

REMOVED = f"{UNFINISHED}.removed"
"""The name of the folder `unfinished` while it is removed."""
SLICE_BYTES = 4 << 20
"""Minimum size of a slice in bytes of input."""
ROWS_PER_SLICE = 512
"""Minimum number of rows of a slice, if a token has 4 bytes of text. The last row of a slice is not full, so on average
0.1% of all positions are lost."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that a task needs in order to prepare a slice."""

    folder: Path
    """The folder that is prepared."""
    recipe: Recipe
    config: DatasetConfig
    compression: str | None
    slices: list[Slice]
    form: str | None
    """The form of the first valid row; None if no row is valid."""
    first_place: str
    """Location of the first valid row."""
    remote: str | None = None
    """URL of the folder in an object store to which tasks upload their parts; None: parts are in `folder`."""

    @property
    def is_own_code(self) -> bool:
        """Whether the user's code converts rows, which may end its process."""
        return is_own(self.config.preprocessing_fn)

    def refuses(self, reading: Reading) -> bool:
        """Whether no rows are written because invalid rows were found and on_bad_example is `error`."""
        return self.config.on_bad_example == "error" and reading.bad_rows > 0


def plan(folder: Path, recipe: Recipe, config: DatasetConfig, made_from: MadeFrom, compression: str | None) -> Job:
    """Start a preparation, or resume one that was interrupted. Several processes may call this at the same time.

    Raises ConfigError if the folder contains other files or the parts of other data. Raises WorkerEnded if
    preprocessing_fn ends its process.
    """
    slices = recipe.source.slices(max(SLICE_BYTES, ROWS_PER_SLICE * 4 * config.max_seq_len))
    saved = read_plan(folder)
    if saved is None:
        refuse_names_in_the_way(folder)
        form, first_place = _first_valid(recipe, slices, config)
        sizes = [slice.size for slice in slices]
        saved = {"made_from": made_from, "sizes": sizes, "form": form, "first_place": first_place}
        (folder / PARTS).mkdir(parents=True, exist_ok=True)
        _write_once(folder / PLAN, saved)
        saved = read_plan(folder) or saved
    refuse_other(folder, saved["made_from"], made_from)
    if saved["sizes"] != [slice.size for slice in slices]:
        raise DataError(f"{folder / UNFINISHED} was written by another version of Dropless: delete it and start again")
    return Job(
        folder=folder,
        recipe=recipe,
        config=config,
        compression=compression,
        slices=slices,
        form=saved["form"],
        first_place=saved["first_place"],
    )


def read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of a preparation that is running or was interrupted; None if there is no plan."""
    file = folder / PLAN
    return read_json(file) if file.exists() else None


def remove_unfinished(folder: Path) -> None:
    """Remove the unfinished files. Their folder is renamed first, so that if the removal is interrupted, no later
    preparation uses the remaining parts."""
    shutil.rmtree(folder / REMOVED, ignore_errors=True)
    with suppress(FileNotFoundError):
        (folder / UNFINISHED).rename(folder / REMOVED)
    shutil.rmtree(folder / REMOVED, ignore_errors=True)


def done(folder: Path) -> Iterator[int]:
    """The numbers of the slices that are prepared."""
    with suppress(FileNotFoundError):
        yield from done_slices(folder)


def _write_once(file: Path, values: dict[str, Any]) -> None:
    """Write the file, unless another process has written it first."""
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
    write_text(temporary, json.dumps(values))
    try:
        os.link(temporary, file)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        temporary.rename(file)
    temporary.unlink(missing_ok=True)


def _first_valid(recipe: Recipe, slices: list[Slice], config: DatasetConfig) -> tuple[str | None, str]:
    """The form and the location of the first valid row. The user's code runs in a child process."""
    isolated = is_own(config.preprocessing_fn)
    (found,) = map_in_order(partial(_find_valid, recipe), [slices], 1, lambda: 1, isolated=isolated)
    return found


def _find_valid(recipe: Recipe, slices: list[Slice]) -> tuple[str | None, str]:
    reading = Reading()
    chunks = (chunk for slice in slices for chunk in recipe.source.chunks(slice))
    for chunk in chunks:
        for _ in read_examples(recipe.source.rows(chunk), recipe.preprocess, reading):
            return reading.form, reading.first_place
    return None, ""
