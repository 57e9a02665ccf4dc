"""The functions that Spark's executors call: check that the executor is set up as the driver, and prepare a slice.

The driver and the executors exchange pickled objects.
"""

import gc
import pickle
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError, DataError, EngineError, settings_written
from data.base.workers import map_in_order
from data.mds.writer import PARTS, PLAN, UNFINISHED
from data.preparation.packing.tokenizing import Tokenizing
from data.preparation.parts.part import Part, part_folder
from data.preparation.parts.plan import Job
from data.preparation.parts.remote import RemoteParts
from data.preparation.parts.write import write_part
from data.spark.executors import check_versions, executor_error, versions_here
from data.stores.store import StoreError

_SHARED = "choose a folder on a file system that the driver and all executors share"


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What the driver sends to the executors."""

    job: Job
    n_workers: int
    """Number of processes per task."""
    setting: Callable[[str, Any], str]
    """The driver's function that writes settings in messages."""
    folder: str
    """The driver's working directory."""
    versions: dict[str, str]


def payload_of(job: Job, n_workers: int, setting: Callable[[str, Any], str]) -> Payload:
    """The payload for the tasks of the job. Called by the driver."""
    return Payload(job=job, n_workers=n_workers, setting=setting, folder=str(Path.cwd()), versions=versions_here())


def probe(content: bytes, number: int) -> bytes:
    """Check this executor. Returns the pickled `(number, result)`, where the result is the name of a file that was
    written into the unfinished folder, or an EngineError."""
    payload = _loaded(content)
    try:
        with _as_on_driver(payload):
            return pickle.dumps((number, check_executor(payload, leave_file=True)))
    except EngineError as error:
        return pickle.dumps((number, error))


def prepare_slice(content: bytes, number: int, *, check_only: bool, is_last_attempt: bool) -> bytes:
    """Prepare the slice with this number.

    Returns the pickled `(number, result)`. The result is None if the part was written, a Part if it was only checked or
    has invalid rows, or an exception. Exceptions that another attempt may avoid are raised, so that Spark repeats the
    task, unless this is the last attempt.
    """
    payload = _loaded(content)
    try:
        with _as_on_driver(payload):
            _checked(content)
            part = (_write if payload.job.remote is None else _upload)(payload, number, check_only)
            result = part if check_only or payload.job.refuses(part.reading) else None
            return pickle.dumps((number, result))
    except (ConfigError, DataError) as error:
        return pickle.dumps((number, error))
    except Exception as error:
        if not is_last_attempt:
            raise
        return pickle.dumps((number, _picklable(error)))


def check_executor(payload: Payload, *, leave_file: bool = False) -> str:
    """Raises EngineError if this executor has other packages than the driver, does not see the input or the output, or
    cannot write the output. Returns the name of a file that was written into the unfinished folder."""
    check_versions(payload.versions)
    try:
        payload.job.recipe.source.check_visible()
    except DataError as error:
        raise executor_error(f"does not see the input as the driver does ({error}): {_SHARED}") from None
    if payload.job.remote is not None:
        try:
            _remote_parts(payload.job.remote).check_writable()
        except (ConfigError, StoreError) as error:
            raise executor_error(f"cannot write the output ({error}): check its credentials") from None
        return ""
    unfinished, plan = payload.job.folder / UNFINISHED, payload.job.folder / PLAN
    if not plan.is_file():
        raise executor_error(f"does not see {plan}, which the driver has written: {_SHARED}")
    file = unfinished / f"executor-{uuid.uuid4().hex}"
    try:
        file.write_bytes(b"")
        if not leave_file:
            file.unlink()
    except OSError as error:
        raise executor_error(f"cannot write to {payload.job.folder} ({error.strerror}): {_SHARED}") from None
    return file.name


def _write(payload: Payload, number: int, check_only: bool) -> Part:
    job, n_workers = payload.job, payload.n_workers
    slice = job.slices[number]
    assert slice.number == number
    if not job.is_own_code or n_workers > 1:
        return write_part(job, slice, n_workers=n_workers, check_only=check_only)
    # The user's code may end its process. In a child process, the reason is known.
    parts = map_in_order(
        lambda slice: write_part(job, slice, check_only=check_only), [slice], 1, lambda: 1, isolated=True
    )
    (part,) = parts
    return part


def _upload(payload: Payload, number: int, check_only: bool) -> Part:
    """Write the part into a temporary folder on this machine, and upload the part."""
    assert payload.job.remote is not None
    with tempfile.TemporaryDirectory(prefix="dropless-") as name:
        folder, recipe = Path(name), payload.job.recipe
        (folder / PARTS).mkdir(parents=True)
        if isinstance(recipe, Tokenizing):
            recipe = replace(recipe, spool=folder / UNFINISHED)
        job = replace(payload.job, folder=folder, recipe=recipe)
        part = _write(replace(payload, job=job), number, check_only)
        if part_folder(folder, number).exists():
            _remote_parts(payload.job.remote).commit(folder, number)
        return part


@lru_cache(maxsize=1)
def _remote_parts(url: str) -> RemoteParts:
    """The parts in a store, whose client is opened once per process."""
    return RemoteParts(url)


@lru_cache(maxsize=1)
def _checked(content: bytes) -> None:
    """Check this executor before the first task of this process, because it may have been started after the driver's
    check."""
    check_executor(_loaded(content))
    import streaming  # noqa: F401 - the objects of large libraries are imported before gc.freeze()

    gc.freeze()  # Spark collects garbage after each task, which would take 0.2 s with these objects


@lru_cache(maxsize=1)
def _loaded(content: bytes) -> Payload:
    """The payload, which is unpickled once per process."""
    return pickle.loads(content)


@contextmanager
def _as_on_driver(payload: Payload) -> Iterator[None]:
    """Within the block, messages and relative paths are as on the driver."""
    there = chdir(payload.folder) if Path(payload.folder).is_dir() else nullcontext()
    with settings_written(payload.setting), there:
        yield


def _picklable(error: Exception) -> Exception:
    with suppress(Exception):
        pickle.loads(pickle.dumps(error))
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
