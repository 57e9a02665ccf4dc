"""Prepare the slices with Spark: one task per slice.

A part is committed by a rename, so tasks may be repeated, and speculative copies of a task do no harm. Executors write
the parts into the folder that is prepared, which must be on a file system that the driver and all executors share, or
upload the parts to an object store.
"""

import pickle
import signal
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from data.base.errors import EngineError, setting, settings_writer
from data.base.workers import WorkerEnded
from data.mds.writer import UNFINISHED
from data.preparation.engines.choice import Engine
from data.preparation.engines.executor import payload_of
from data.preparation.parts.part import Part
from data.preparation.parts.plan import Job, done
from data.preparation.parts.progress import source_bar
from data.preparation.parts.remote import RemoteParts
from data.sources.slices import Slice
from data.spark.executors import ROOT, module_of
from data.spark.session import java_message, max_attempts, spark_session
from data.stores.store import StoreError

if TYPE_CHECKING:
    from pyspark import Accumulator, Broadcast, SparkContext

POLL = 0.2
"""Seconds between two looks at the results."""

CANCELLED = 5.0
"""Seconds to wait after tasks were cancelled, so that none of them writes into a folder that was removed. Spark ends
the processes of cancelled tasks after 2 to 3 s (see spark.python.task.killTimeout)."""

Results = Generator[tuple[int, Any]]


def run_spark(job: Job, engine: Engine) -> list[Part]:
    """Prepare all slices that are not prepared yet.

    Returns the parts of slices that were not written, because rows are invalid and on_bad_example is `error`. Raises
    EngineError if Spark cannot be started, if an executor is not set up as this process, or if a task failed.
    """
    if job.remote is None:
        return _run(job, engine, set(done(job.folder)))
    with store_errors():
        parts = RemoteParts(job.remote)
        parts.claim(job.folder)
        ready = parts.done()
    refused = _run(job, engine, ready)
    with store_errors():
        parts.fetch_manifests(job.folder)
    return refused


def _run(job: Job, engine: Engine, ready: set[int]) -> list[Part]:
    todo = [slice for slice in job.slices if slice.number not in ready]
    if not todo:
        return []
    n_done = sum(slice.size for slice in job.slices if slice.number in ready)
    total = n_done + sum(slice.size for slice in todo)
    with (
        spark_session(engine.master) as session,
        source_bar("Preparing rows", total or None, job.recipe.source.unit, n_done) as bar,
    ):
        tasks = _Tasks(session.sparkContext, job)
        tasks.check_executors()
        return _prepare(tasks, todo, bar)


def _prepare(tasks: "_Tasks", todo: list[Slice], bar: Any) -> list[Part]:
    """Prepare the slices, and return the parts that were not written. If there is one, no rows are written, so the
    remaining slices are only checked."""
    refused: list[Part] = []
    sizes = {slice.number: slice.size for slice in todo}
    for check_only in (False, True):
        # The largest slices come first, so that no executor is still busy with one when the others have finished.
        numbers = sorted(sizes, key=lambda number: -sizes[number])
        with closing(tasks.prepare(numbers, check_only)) as results:
            for number, part in results:
                bar.update(sizes.pop(number, 0))
                if part is not None:
                    refused.append(part)
                    bar.set_postfix(bad_rows=sum(each.reading.bad_rows for each in refused), refresh=False)
                    if not check_only:
                        break
        if not refused or not sizes:
            break
    return refused


class _Tasks:
    """The tasks of a job on Spark."""

    def __init__(self, context: "SparkContext", job: Job) -> None:
        self._context, self._job = context, job
        self._attempts = max_attempts(context)
        n_workers = int(context.getConf().get("spark.task.cpus") or 1)
        self._payload = context.broadcast(_pickled(job, n_workers))
        self._paths = [str(ROOT), *_folder_of(_own_module(job))]

    def check_executors(self) -> None:
        """Raises EngineError if an executor has other packages, or does not see the input or the output."""
        numbers = list(range(self._context.defaultParallelism))
        with closing(self._results(numbers, "probe", {})) as results:
            names = [name for _, name in results]
        for name in names if self._job.remote is None else []:
            file = self._job.folder / UNFINISHED / name
            if not file.exists():
                raise EngineError(
                    f"an executor of Spark has written {file}, but this process does not see the file: choose a "
                    "folder on a file system that the driver and all executors share"
                )
            file.unlink()

    def prepare(self, numbers: list[int], check_only: bool) -> Results:
        """Yield the number of each slice as soon as it is prepared, and its part if the part was not written."""
        return self._results(numbers, "prepare_slice", {"check_only": check_only})

    def _results(self, numbers: list[int], function: str, arguments: dict[str, Any]) -> Results:
        """Yield the results of `function` for each number, in the order in which the tasks end. If the generator is
        closed, the remaining tasks are cancelled."""
        from pyspark import InheritableThread

        results = _list_accumulator(self._context)
        task = _task(function, arguments, self._payload, results, self._paths, self._attempts)
        group, failed = f"dropless-{uuid.uuid4().hex}", list[Exception]()

        def run() -> None:
            self._context.setJobGroup(group, f"Preparing {self._job.folder}")
            try:
                self._context.parallelize(numbers, len(numbers)).foreach(task)
            except Exception as error:  # Py4J's errors, including those of a Java process that has ended
                failed.append(error)

        thread = InheritableThread(run)
        thread.start()
        n_seen = 0
        try:
            while True:
                is_last = not thread.is_alive()
                new = results.value[n_seen:]
                n_seen += len(new)
                yield from map(self._result, new)
                if is_last:
                    break
                thread.join(POLL)
            if failed:
                raise _error_of(failed[0], self._attempts) from None
        finally:
            if thread.is_alive():
                with suppress(Exception):  # Java has ended, and so have its tasks
                    self._context.cancelJobGroup(group)
                thread.join()
                time.sleep(CANCELLED)

    def _result(self, content: bytes) -> tuple[int, Any]:
        number, result = pickle.loads(content)
        if isinstance(result, ImportError):
            raise EngineError(
                f"an executor of Spark cannot import Dropless ({result}): set PYSPARK_PYTHON to the interpreter of an "
                f"environment with Dropless that exists on every executor, and share {ROOT} with the executors"
            )
        if isinstance(result, WorkerEnded) and result.status == -signal.SIGKILL:
            raise _killed(self._attempts)
        if isinstance(result, Exception):
            with store_errors():
                raise result
        return number, result


def _task(
    function: str,
    arguments: dict[str, Any],
    payload: "Broadcast[bytes]",
    results: "Accumulator[list[bytes]]",
    paths: list[str],
    attempts: int,
) -> Callable[[int], None]:
    """The function of a task. A nested function is pickled with its code, so that it can add `paths` to the
    executor's path before it imports modules of this repository."""

    def run(number: int) -> None:
        import pickle
        import socket
        import sys

        from pyspark import TaskContext

        sys.path[:0] = [path for path in paths if path not in sys.path]
        try:
            from data.preparation.engines import executor
        except ImportError as error:
            found = ImportError(f"{socket.gethostname()}: {error}")
            results.add([pickle.dumps((number, found))])
            return
        if function == "probe":
            results.add([executor.probe(payload.value, number)])
            return
        context = TaskContext.get()
        is_last = context is None or context.attemptNumber() + 1 >= attempts
        results.add([executor.prepare_slice(payload.value, number, is_last_attempt=is_last, **arguments)])

    return run


def _list_accumulator(context: "SparkContext") -> "Accumulator[list[bytes]]":
    """A list to which tasks add their results. Spark adds the result of a task only once."""
    from pyspark import AccumulatorParam

    class Lists(AccumulatorParam[list[bytes]]):  # a local class is pickled with its code, like the function of the task
        def zero(self, value: list[bytes]) -> list[bytes]:
            return []

        def addInPlace(self, value1: list[bytes], value2: list[bytes]) -> list[bytes]:
            value1 += value2
            return value1

    return context.accumulator([], Lists())


def _pickled(job: Job, n_workers: int) -> bytes:
    """The payload of the tasks. The module of the user's own function is pickled with its code, because the executors
    may not have this module, or an older version of it."""
    from pyspark import cloudpickle

    own = _own_module(job)
    if own is not None:
        cloudpickle.register_pickle_by_value(own)
    try:
        return cloudpickle.dumps(payload_of(job, n_workers, settings_writer()))
    except Exception as error:  # objects that cannot be pickled raise errors of any type
        if own is None:
            raise
        name = job.config.preprocessing_fn
        raise EngineError(
            f"{setting('preprocessing_fn')} is {name!r}, which cannot be sent to Spark's executors ({error}): create "
            "the objects that it needs inside the function"
        ) from None
    finally:
        if own is not None:
            cloudpickle.unregister_pickle_by_value(own)


@contextmanager
def store_errors() -> Iterator[None]:
    """Convert errors of an object store to errors that suggest a fix. Parts that are complete are kept."""
    try:
        yield
    except StoreError as error:
        raise EngineError(f"{error}: start again; completed work is not repeated") from None


def _own_module(job: Job) -> ModuleType | None:
    """The module of the user's own preprocessing function."""
    return module_of(str(job.config.preprocessing_fn)) if job.is_own_code else None


def _folder_of(module: ModuleType | None) -> list[str]:
    """The folder from which the module was imported, because it may import other modules from there."""
    if module is None or module.__file__ is None:
        return []
    file = Path(module.__file__)
    return [str(file.parents[module.__name__.count(".") + (file.name == "__init__.py")])]


def _error_of(error: Exception, attempts: int) -> EngineError:
    """The error of a job that Spark has ended."""
    message = java_message(error)
    details = str(getattr(error, "java_exception", None) or error)
    if "PYTHON_VERSION_MISMATCH" in str(error) or "Cannot run program" in f"{details}{error}":
        version = ".".join(map(str, sys.version_info[:2]))
        return EngineError(
            f"Spark's executors do not run Python {version} ({message}): set PYSPARK_PYTHON to an interpreter of "
            f"Python {version} that exists on every executor, with the packages of this process"
        )
    if isinstance(error, OSError) or type(error).__name__ == "Py4JNetworkError":
        message = f"its Java process has ended, perhaps because of low memory; {message}"
    if "Python worker exited unexpectedly" in message:
        return _killed(attempts)
    return EngineError(f"Spark has ended the job ({message}): start again; completed work is not repeated")


def _killed(attempts: int) -> EngineError:
    return EngineError(
        f"the process of a Spark task was ended in each of {attempts} attempts, perhaps by the system because of low "
        "memory: start again with fewer tasks per executor or more memory; completed work is not repeated"
    )
