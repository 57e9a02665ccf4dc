"""Batches whose loss or gradient was not finite, saved with everything that is needed to recompute them.

SAVE_FOLDER/incidents/baN contains `incident.json` and a file `batch-rankR.safetensors` for each rank. N is the number
of earlier batches.
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
"""Maximum number of incidents kept in a save folder; later incidents are reported but not written."""
_INCIDENT = "incident.json"
_TENSORS = ("input_ids", "labels", "document_ids", "streams")
"""Tensors of a batch from data/loading/batches.py; the values that callbacks add can be recomputed from them."""


@dataclass(frozen=True, kw_only=True)
class RankPart:
    """One rank's part of an incident, as JSON values."""

    loss: str
    """The rank's part of the loss in the format of float.hex, which includes NaN and inf."""
    gradients: Sequence[str]
    """The parameters whose gradient is not finite on this rank."""
    rows: Mapping[str, Sequence[int]]
    """The row ids of each stream in this rank's batch."""
    random: Mapping[str, Any]
    """The rank's random state at the start of the batch, from encode_random."""


@dataclass(frozen=True, kw_only=True)
class Incident:
    """A batch whose loss or gradient was not finite."""

    batch: int
    run_name: str
    ranks: Sequence[RankPart]


def write_incident(folder: Path, incident: Incident, batch: Mapping[str, Tensor]) -> Path | str:
    """Write the incident and this rank's batch to the save folder. Returns the incident's folder, or the reason why it
    was not written. Every rank must call this."""
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
    """Read the incident in a folder. Raises ConfigError if the folder does not contain a valid incident."""
    try:
        values = json.loads((path / _INCIDENT).read_bytes())
        ranks = [RankPart(**{each.name: part[each.name] for each in fields(RankPart)}) for part in values.pop("ranks")]
        return Incident(**values, ranks=ranks)
    except FileNotFoundError:
        hint = f"specify a folder in SAVE_FOLDER/{INCIDENTS}, such as {INCIDENTS}/ba100"
        raise ConfigError(f"{path} is not an incident: it has no {_INCIDENT}: {hint}") from None
    except OSError as error:
        raise ConfigError(f"{path / _INCIDENT} cannot be read: {reason(error)}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path / _INCIDENT} is corrupt: {error!r}") from None


def read_batch(path: Path, rank: int) -> dict[str, Tensor]:
    """Read a rank's batch. Raises ConfigError if the batch cannot be read."""
    file = path / f"batch-rank{rank}.safetensors"
    try:
        return load_file(file)
    except Exception as error:  # safetensors errors have no common base class
        raise ConfigError(f"{file} cannot be read: {error}") from None


def _prepare(part: Path, place: Path) -> None:
    others = [path for path in place.parent.glob("ba*") if path != place] if place.parent.is_dir() else []
    if len(others) >= MOST:
        raise DataError(f"{place.parent} already has {len(others)} incidents, so no further incidents are written")
    with plain_os_errors(f"save_folder {place.parent.parent}", "specify another save_folder", needed_for="an incident"):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)


def _write_batch(part: Path, batch: Mapping[str, Tensor]) -> str | None:
    try:
        tensors = {name: batch[name].cpu().contiguous() for name in _TENSORS if name in batch}
        save_file(tensors, part / f"batch-rank{dist.get_global_rank()}.safetensors")
    except Exception as error:  # safetensors errors have no common base class
        return str(error)
    return None


def _commit(part: Path, place: Path, incident: Incident) -> None:
    with plain_os_errors(f"save_folder {place.parent.parent}", "specify another save_folder", needed_for="an incident"):
        (part / _INCIDENT).write_text(json.dumps(asdict(incident)))
        # An earlier start of the run may have written an incident for the same batch.
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
