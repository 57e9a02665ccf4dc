"""Evaluation sets: their files in the config, and their questions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from tempfile import TemporaryDirectory
from typing import Any

from data.base.errors import ConfigError
from data.base.problems import Problem, Reading, describe
from data.config.dataset import DatasetConfig
from data.config.sections import Defect, Section
from data.config.source import HFKwargs, Paths
from data.config.suggest import near
from data.config.values import PathText
from data.curation.decontamination.harness import read_task
from data.curation.decontamination.questions import EvalSet, Question, question_of
from data.sources.formats.names import DATA_SUFFIXES, either, named_format
from data.sources.source import Source, open_source


def _one_kind(evals: "EvalFiles") -> Iterator[Defect]:
    if (evals.path is None) == (evals.lm_eval is None):
        both = "are both set" if evals.path is not None else "are both missing"
        yield Defect("", f"has no unique source, because path and lm_eval {both}: set one of them")
    if evals.path is None and evals.fields is not None:
        yield Defect("fields", "requires path: a task of the lm-evaluation-harness selects its own fields")
    if evals.fields == []:
        yield Defect("fields", "is empty: specify at least one field, or remove it to use all fields")


@dataclass(frozen=True, kw_only=True)
class EvalFiles(Section):
    """The files of one evaluation set."""

    RULES = (_one_kind,)

    path: Paths | None = None
    """JSON, JSONL, CSV or Parquet files: file names or patterns, also in an object store. Each record is a question."""
    fields: list[str] | None = None
    """The fields that are compared with documents, such as `[question, choices]`. The first one contains the question.
    `a.b` is the field `b` in the object `a`. `null` uses all fields that contain strings; the question is the first
    existing field of QUESTION_FIELDS."""
    lm_eval: PathText | None = None
    """Instead of `path`: the YAML file of a task of the lm-evaluation-harness with local data files."""


def read_evals(name: str, files: EvalFiles) -> EvalSet:
    """Read one evaluation set. Raises ConfigError or DataError with the location of each problem."""
    if files.lm_eval is not None:
        return read_task(name, files.lm_eval)
    paths = [files.path] if isinstance(files.path, str) else files.path or []
    if not paths:
        raise ConfigError("is empty: specify at least one file", key="path")
    rows = [pair for path in paths for pair in _rows(path)]
    _check_fields(files.fields, rows)
    return EvalSet(name=name, questions=_questions(rows, files.fields))


def _rows(path: str) -> list[tuple[str, dict[str, Any]]]:
    """The records of the files that match the path, with their locations."""
    format = named_format(PurePath(path).name)
    if format is None:
        raise ConfigError(
            f"has {path!r}, which does not end in {either(DATA_SUFFIXES)}, so its format is unknown: write the "
            "questions to a JSONL file, one object per line",
            key="path",
        )
    reading, rows = Reading(), []
    with TemporaryDirectory() as cache_dir:
        kwargs = HFKwargs(data_files=path)
        for place, row in _read(
            _open(DatasetConfig(hf_name=format, hf_kwargs=kwargs, max_seq_len=2, cache_dir=cache_dir))
        ):
            if isinstance(row, Problem):
                reading.add(place, [row])
            elif not isinstance(row, dict):
                reading.add(place, [Problem("not an object", f"is {describe(row)}, but it must be an object")])
            else:
                rows.append((str(place), row))
    reading.raise_if_any()
    return rows


def _open(config: DatasetConfig) -> Source:
    try:
        return open_source(config)
    except ConfigError as error:
        raise ConfigError(error.text, key="path") from None


def _read(source: Source) -> Iterator[tuple[Any, Any]]:
    """The pairs of location and record of a whole source."""
    files: set[int] = set()
    for slice in source.slices(1 << 60):
        for chunk in source.chunks(slice):
            files.add(getattr(chunk, "file", 0))
            yield from source.rows(chunk)
    source.check_done(files)


def _check_fields(fields: Sequence[str] | None, rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
    for name in fields or ():
        if not any(_has(row, name) for _, row in rows):
            place, row = rows[0]
            names = list(row)
            raise ConfigError(
                f"contains {name!r}, but no record has this field{near(name, names)} (the fields of {place} are "
                f"{', '.join(names)})",
                key="fields",
            )


def _questions(rows: Iterable[tuple[str, dict[str, Any]]], fields: Sequence[str] | None) -> list[Question]:
    reading, questions = Reading(), []
    for place, row in rows:
        found = question_of(place, row, fields)
        if isinstance(found, Problem):
            reading.add(place, [found])
        else:
            questions.append(found)
    reading.raise_if_any()
    return questions


def _has(row: Any, name: str) -> bool:
    first, _, rest = name.partition(".")
    return isinstance(row, Mapping) and (name in row or bool(rest and _has(row.get(first), rest)))
