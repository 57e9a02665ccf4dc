"""Functions that run on Spark's executors: apply a step to batches of documents."""

import base64
import pickle
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from data.base.errors import ConfigError, DataError, EngineError
from data.curation.base.document import COLUMNS, VERDICT_COLUMNS, Document, Judge, Verdict
from data.spark.session import java_message

ARROW_SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("source", pa.string()),
        ("file", pa.string()),
        ("position", pa.int64()),
        ("text", pa.string()),
        ("n_tokens", pa.int64()),
        ("scores", pa.map_(pa.string(), pa.float64())),
    ]
)
"""SCHEMA as a schema of Arrow."""
ARROW_VERDICTS = pa.schema(
    [("reason", pa.string()), ("detail", pa.string()), ("other", pa.int64()), ("changes", pa.int64())]
)
"""VERDICT_SCHEMA as a schema of Arrow."""
_MARK = re.compile(r"\[\[dropless:([A-Za-z0-9+/=]+)\]\]")


class DocumentError(DataError):
    """A step has raised an exception for a document. The driver adds the location of the document to the message."""

    def __init__(self, text: str, source: str, file: str, position: int) -> None:
        super().__init__(text)
        self.source, self.file, self.position = source, file, position

    def __reduce__(self) -> tuple[Any, ...]:
        return DocumentError, (str(self), self.source, self.file, self.position)


def judge_batches(
    batches: Iterator[pa.RecordBatch], step: Any, count_tokens: Callable[[str], int], again: bool
) -> Iterator[pa.RecordBatch]:
    """The function of a task: add the verdicts of a DocumentStep to batches of documents."""
    with errors_for_driver():
        judge: Judge = (lambda document: step.decide(document.scores)) if again else step.judge()
        for batch in batches:
            rows = [Document(*row.values()) for row in batch.to_pylist(maps_as_pydicts="strict")]
            verdicts = [_verdict(judge, row) for row in rows]
            changed = [_changed(row, verdict, count_tokens) for row, verdict in zip(rows, verdicts, strict=True)]
            yield batch_of(list(zip(changed, verdicts, strict=True)))


def _verdict(judge: Judge, document: Document) -> Verdict:
    try:
        return judge(document)
    except Exception as error:  # the function of a step, which may be the user's own, raises errors of any type
        text = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
        raise DocumentError(text, document.source, document.file, document.position) from error


def batch_of(rows: Sequence[tuple[Document, Verdict]]) -> pa.RecordBatch:
    """Documents and their verdicts as a batch with the columns of SCHEMA and VERDICT_SCHEMA."""
    columns = {name: [getattr(document, name) for document, _ in rows] for name in COLUMNS}
    columns["scores"] = [list(document.scores.items()) for document, _ in rows]
    columns |= {name: [getattr(verdict, name) for _, verdict in rows] for name in VERDICT_COLUMNS}
    schema = pa.schema([*ARROW_SCHEMA, *ARROW_VERDICTS])
    return pa.RecordBatch.from_pydict(columns, schema=schema)


def _changed(row: Document, verdict: Verdict, count_tokens: Callable[[str], int]) -> Document:
    if verdict.scores:
        row = row._replace(scores={**row.scores, **verdict.scores})
    if verdict.text is not None:
        row = row._replace(text=verdict.text, n_tokens=count_tokens(verdict.text))
    return row


@contextmanager
def errors_for_driver() -> Iterator[None]:
    """Raise ConfigErrors and DataErrors of the block so that `error_from` finds them in Spark's error message."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise RuntimeError(f"[[dropless:{base64.b64encode(pickle.dumps(error)).decode()}]]") from error


@contextmanager
def errors_of_tasks(subject: str) -> Iterator[None]:
    """Raise the ConfigError or DataError of a task that has ended a Spark job in the block. Other errors of Spark are
    raised as EngineError. `subject` is what Spark computes."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except Exception as raised:  # PySpark and Py4J raise many types of errors
        if (error := error_from(raised)) is not None:
            raise error from None
        is_lost = isinstance(raised, ConnectionError)  # the connection to the Java process
        if not is_lost and type(raised).__module__.partition(".")[0] not in ("pyspark", "py4j"):
            raise
        raise EngineError(
            f"Spark has ended {subject}: {_reason(raised, is_lost)}: start again; completed steps are not repeated"
        ) from raised


def _reason(error: Exception, is_lost: bool) -> str:
    """Why Spark has ended a job."""
    if is_lost or type(error).__name__ == "Py4JNetworkError":
        return "its Java process has ended, perhaps because of low memory"
    trace = f"{error}{getattr(error, '_stackTrace', None) or ''}"
    if "No space left on device" in trace:
        return "a disk is full, either of the output or of Spark's temporary files (spark.local.dir): free some space"
    if "Python worker exited unexpectedly" in trace:
        return (
            "the process of a task has ended in each attempt, perhaps because of low memory, or because a function of "
            "your own ends it"
        )
    return java_message(error)


def error_from(error: Exception) -> ConfigError | DataError | None:
    """The error of a task, if it is contained in the error with which Spark has ended the job."""
    found = _MARK.search(str(error))
    return pickle.loads(base64.b64decode(found[1])) if found else None
