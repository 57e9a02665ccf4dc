"""lineage.json: the run, its data and its save folder as an OpenLineage event (https://openlineage.io, version 2-0-2).

The event is only written to a file. Facets whose names begin with `dropless_` are not part of OpenLineage.
"""

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from composer.utils import dist

from data.base import console
from data.base.errors import cannot_be, plain_os_errors
from data.base.versions import installed_versions, versions
from data.lineage.licenses import license_of
from data.loading.rows import Rows
from data.secrets.redaction import is_address, redacted, without_login
from train.checkpoint.save_folder import PART, checkpoints
from train.config.redaction import masked
from train.distributed.first_rank import on_first_rank
from train.supervision.exit_codes import ExitCode, RunStopped

LINEAGE = "lineage.json"
"""File in a save folder."""
_SPEC = "https://openlineage.io/spec"
_HUB = "https://huggingface.co"
_LONGEST_MESSAGE = 2000
_MOST_FILES = 1000
"""Maximum number of input files that are listed for a stream."""


@dataclass(frozen=True, kw_only=True)
class RunLineage:
    """The values of a run from which its event is made."""

    run_id: str
    run_name: str
    folder: Path
    """The local save folder, to which the event is written."""
    save_folder: str
    """The save folder as a path or an address."""
    loaders: Mapping[str, Mapping[str, Rows]]
    """`train_loader` and `eval_loader` -> the rows of each stream."""
    first_batch: int
    max_batches: int


@contextmanager
def lineage_written(run: RunLineage | None) -> Iterator[None]:
    """Write the event START to lineage.json and, on exit, replace it with COMPLETE, FAIL (after an error) or ABORT (if
    the run can be resumed). Rank 0 writes the file. Every rank must enter the context. Does nothing if `run` is None.

    Raises ConfigError or DataError if the first event cannot be written. Later, there is only a warning.
    """
    if run is None:
        yield
        return
    with plain_os_errors(f"save_folder {run.folder}", "name another", needed_for=LINEAGE, again="start again"):
        on_first_rank(lambda: _write(run, run_event(run, "START")))
    try:
        yield
    except RunStopped as stop:
        _end(run, "FAIL" if stop.code == ExitCode.UNSTABLE else "ABORT", str(stop))
        raise
    except KeyboardInterrupt:
        _end(run, "ABORT", "interrupted")
        raise
    except BaseException as error:
        _end(run, "FAIL", f"{type(error).__name__}: {error}")
        raise
    _end(run, "COMPLETE")


def _end(run: RunLineage, kind: str, message: str | None = None) -> None:
    if dist.get_global_rank() == 0:
        try:
            _write(run, run_event(run, kind, message))
        except OSError as error:  # must not hide the reason for which the run ends
            console.logger.warning(cannot_be("written", run.folder / LINEAGE, error))


def _write(run: RunLineage, event: Mapping[str, Any]) -> None:
    part = run.folder / f"{PART}{LINEAGE}"
    part.write_text(json.dumps(event, indent=1) + "\n", encoding="utf-8")
    part.replace(run.folder / LINEAGE)


def run_event(run: RunLineage, kind: str, message: str | None = None) -> dict[str, Any]:
    """The event of this kind, as JSON values without secrets. message: why the run ended early."""
    steps = {"firstStep": run.first_batch + 1, "lastStep": run.max_batches}
    facets = {
        "processing_engine": _facet("ProcessingEngineRunFacet", "1-1-1", name="dropless", version=_version()),
        "dropless_run": _own("RunFacet", **steps, packages=versions()),
    }
    if message is not None:
        text = redacted(message)[:_LONGEST_MESSAGE]
        facets["errorMessage"] = _facet("ErrorMessageRunFacet", "1-0-1", message=text, programmingLanguage="Python")
    every = [(key, name, rows) for key, streams in run.loaders.items() for name, rows in streams.items()]
    event = {
        "eventType": kind,
        "eventTime": datetime.now(UTC).isoformat(),
        "producer": _producer(),
        "schemaURL": f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {"runId": _uuid(run.run_id), "facets": facets},
        "job": {"namespace": "dropless", "name": run.run_name, "facets": {"jobType": _job_type()}},
        "inputs": [_input(key, name, rows) for key, name, rows in every],
        "outputs": [_output(run)],
    }
    return masked(event)


def _input(loader: str, stream: str, rows: Rows) -> dict[str, Any]:
    manifest = rows.mds.manifest or {}
    found = manifest.get("inputs")
    files = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    described = _own(
        "DatasetFacet",
        loader=loader,
        stream=stream,
        rowsFolder=without_login(rows.mds.remote) if rows.mds.remote else str(rows.folder.absolute()),
        documents=manifest.get("examples_kept"),
        tokenizer=(manifest.get("tokenizer") or {}).get("name"),
        files=[_file(each) for each in files[:_MOST_FILES]],
        filesTotal=len(files),
    )
    columns = [{"name": name, "type": encoding} for name, encoding in rows.mds.columns.items()]
    facets = {
        "schema": _facet("SchemaDatasetFacet", "1-2-0", fields=columns),
        "version": _facet("DatasetVersionDatasetFacet", "1-0-1", datasetVersion=rows.fingerprint),
        "dropless_stream": described,
    }
    if licenses := dict.fromkeys(filter(None, map(license_of, files))):
        facets["dropless_license"] = _own("DatasetFacet", license=", ".join(licenses))
    measured = {"tokens": {"count": rows.tokens}, "loss_mask": {"sum": rows.trained_tokens}}
    metrics = {name: each for name, each in measured.items() if None not in each.values()}
    sizes = {"rowCount": rows.n_rows, "fileCount": len(rows.mds.shards)}
    n_bytes = rows.mds.n_bytes
    quality = _facet("DataQualityMetricsInputDatasetFacet", "1-0-3", **sizes, bytes=n_bytes, columnMetrics=metrics)
    statistics = _facet("InputStatisticsInputDatasetFacet", "1-0-0", **sizes, size=n_bytes)
    input_facets = {"dataQualityMetrics": quality, "inputStatistics": statistics}
    return {**_name_of(rows, files), "facets": facets, "inputFacets": input_facets}


def _file(entry: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("dataset", "revision", "path", "bytes", "xxh3_128", "digest", "fingerprint", "samples")
    return {key: entry[key] for key in kept if key in entry}


def _name_of(rows: Rows, files: list[dict[str, Any]]) -> dict[str, str]:
    """Namespace and name of a stream's source: a hub dataset, an object store, or a local path. For several files, the
    name is that of the folder that contains all of them."""
    if files and "dataset" in files[0]:
        return {"namespace": _HUB, "name": f"datasets/{files[0]['dataset']}"}
    paths = [without_login(str(each["path"])) for each in files if "path" in each]
    if not paths:
        return named(rows.mds.name)
    if all(map(is_address, paths)):
        parts = [PurePosixPath(urlsplit(path).path) for path in paths]
        url = urlsplit(paths[0])
        return {"namespace": f"{url.scheme}://{url.netloc}", "name": os.path.commonpath(parts).lstrip("/")}
    return named(os.path.commonpath([str(Path(path).absolute()) for path in paths]))


def named(place: str) -> dict[str, str]:
    """Namespace and name of a path or an address."""
    if is_address(place):
        url = urlsplit(without_login(place))
        return {"namespace": f"{url.scheme}://{url.netloc}", "name": url.path.strip("/") or "/"}
    return {"namespace": "file", "name": str(Path(place).absolute())}


def _output(run: RunLineage) -> dict[str, Any]:
    saved = [path.name for path in checkpoints(run.folder)]
    facets = {"dropless_checkpoints": _own("DatasetFacet", checkpoints=saved)}
    if saved:
        facets["version"] = _facet("DatasetVersionDatasetFacet", "1-0-1", datasetVersion=saved[-1])
    return {**named(run.save_folder), "facets": facets}


def _job_type() -> dict[str, Any]:
    kinds = {"processingType": "BATCH", "integration": "DROPLESS", "jobType": "TRAINING"}
    return _facet("JobTypeJobFacet", "2-0-4", **kinds)


def _facet(kind: str, schema: str, /, **values: Any) -> dict[str, Any]:
    url = f"{_SPEC}/facets/{schema}/{kind}.json#/$defs/{kind}"
    return {"_producer": _producer(), "_schemaURL": url, **_known(values)}


def _own(kind: str, /, **values: Any) -> dict[str, Any]:
    """A facet that OpenLineage does not define. Its schema is that of all facets of this kind."""
    return {"_producer": _producer(), "_schemaURL": f"{_SPEC}/2-0-2/OpenLineage.json#/$defs/{kind}", **_known(values)}


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _version() -> str:
    return installed_versions(["dropless"]).get("dropless", "0")


def _producer() -> str:
    return f"urn:dropless:{_version()}"


def _uuid(run_id: str) -> str:
    """OpenLineage requires a UUID. The ids of runs are UUIDs, unless another version wrote them."""
    try:
        return str(uuid.UUID(run_id))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, run_id))
