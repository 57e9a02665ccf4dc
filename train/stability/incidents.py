"""Batches whose loss or gradient was not finite, in the save folder: all that computing them again needs.

SAVE_FOLDER/incidents/baN has `incident.json` and, of each rank, `batch-rankR.safetensors`. N batches were before it.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from composer.utils import dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.base.errors import ConfigError, DataError, plain_os_errors, reason
from train.checkpoint.save_folder import INCIDENTS, PART
from train.distributed.first_rank import on_first_rank

MOST = 20
"""Incidents that are kept in a save folder: those after them are reported, but not written."""
_INCIDENT = "incident.json"
_TENSORS = ("input_ids", "labels", "document_ids", "streams")
"""Of a batch, as data/loading/batches.py makes it: what callbacks add follows from it."""


@dataclass(frozen=True, kw_only=True)
class RankPart:
    """What a rank knows of an incident. All of it can be JSON."""

    loss: str
    """Its part of the loss, as float.hex writes it: also NaN and inf."""
    gradients: Sequence[str]
    """The parameters whose gradient is not finite on it."""
    rows: Mapping[str, Sequence[int]]
    """Stream -> ids of its rows in this rank's batch."""
    random: Mapping[str, Any]
    """Its random state at the start of the batch, as encode_random returns it."""


@dataclass(frozen=True, kw_only=True)
class Incident:
    """A batch that was not finite."""

    batch: int
    run_name: str
    ranks: Sequence[RankPart]


def write_incident(folder: Path, incident: Incident, batch: Mapping[str, Tensor]) -> Path | str:
    """Writes it with this rank's batch into the save folder, and returns its folder, or why there is none. Every rank
    has to call it."""
    place = folder / INCIDENTS / f"ba{incident.batch}"
    part = place.with_name(PART + place.name)
    try:
        on_first_rank(lambda: _prepare(part, place))
        errors = dist.all_gather_object(_write_batch(part, batch))
        if failed := [error for error in errors if error is not None]:
            return f"{place} could not be written: {failed[0]}"
        on_first_rank(lambda: _commit(part, place, incident))
    except (ConfigError, DataError) as error:
        return str(error)
    return place


def read_incident(path: Path) -> Incident:
    """Raises ConfigError when the folder is none of an incident."""
    try:
        values = json.loads((path / _INCIDENT).read_bytes())
        ranks = [RankPart(**{each.name: part[each.name] for each in fields(RankPart)}) for part in values.pop("ranks")]
        return Incident(**values, ranks=ranks)
    except FileNotFoundError:
        hint = f"name a folder of SAVE_FOLDER/{INCIDENTS}, such as {INCIDENTS}/ba100"
        raise ConfigError(f"{path} is no incident: it has no {_INCIDENT}: {hint}") from None
    except OSError as error:
        raise ConfigError(f"{path / _INCIDENT} cannot be read: {reason(error)}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path / _INCIDENT} is damaged: {error!r}") from None


def read_batch(path: Path, rank: int) -> dict[str, Tensor]:
    """A rank's batch. Raises ConfigError when it cannot be read."""
    file = path / f"batch-rank{rank}.safetensors"
    try:
        return load_file(file)
    except Exception as error:  # of safetensors, which has no class for all
        raise ConfigError(f"{file} cannot be read: {error}") from None


def _prepare(part: Path, place: Path) -> None:
    others = [path for path in place.parent.glob("ba*") if path != place] if place.parent.is_dir() else []
    if len(others) >= MOST:
        raise DataError(f"{place.parent} has {len(others)} incidents already, so no more are written")
    with plain_os_errors(f"save_folder {place.parent.parent}", "name another", needed_for="an incident"):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)


def _write_batch(part: Path, batch: Mapping[str, Tensor]) -> str | None:
    try:
        tensors = {name: batch[name].cpu().contiguous() for name in _TENSORS if name in batch}
        save_file(tensors, part / f"batch-rank{dist.get_global_rank()}.safetensors")
    except Exception as error:  # of safetensors, which has no class for all
        return str(error)
    return None


def _commit(part: Path, place: Path, incident: Incident) -> None:
    with plain_os_errors(f"save_folder {place.parent.parent}", "name another", needed_for="an incident"):
        (part / _INCIDENT).write_text(json.dumps(asdict(incident)))
        # Of an earlier start of the run, which came to the same batch.
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
