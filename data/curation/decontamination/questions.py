"""The questions of evaluation sets, and how a record becomes a question."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from data.base.problems import Problem

# fmt: off
QUESTION_FIELDS = (
    "question.stem", "question", "query", "prompt", "problem", "instruction", "goal", "ctx", "premise", "sentence",
    "sentence1", "input", "text",
)
# fmt: on
"""Names of the field that contains the question. If a record has several of these fields, the first one is used."""


class Question(NamedTuple):
    """One record of an evaluation set."""

    place: str
    """Location of the record, such as `mmlu.jsonl:12`."""
    texts: tuple[str, ...]
    """The texts whose n-grams are searched."""
    exact: str
    """The text that is searched as a whole if it is shorter than an n-gram."""


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """An evaluation set in memory."""

    name: str
    questions: list[Question]
    common: list[str] = field(default_factory=list)
    """Texts that all questions share, such as the instructions of a template. Their n-grams are not searched."""


def question_of(place: str, row: Mapping[str, Any], fields: Sequence[str] | None) -> Question | Problem:
    """The question of a record; a Problem if the record has no text, or no field that is known as a question."""
    field = fields[0] if fields else next((name for name in QUESTION_FIELDS if any(texts_of(_get(row, name)))), None)
    whole = list(texts_of(row if fields is None else [_get(row, name) for name in fields]))
    if not whole:
        names = f"the fields {', '.join(fields)}" if fields else "any field"
        return Problem("no text", f"has no text in {names}: remove the record, or select other fields")
    if field is None:
        return Problem(
            "no question",
            f"has no field that is known as a question ({', '.join(QUESTION_FIELDS)}): select the fields, with the "
            f"question first: {{path: FILE, fields: [{', '.join(row)}]}}",
        )
    exact = " ".join(texts_of(_get(row, field)))
    return Question(place, (" ".join(whole), exact), exact)


def texts_of(value: Any) -> Iterator[str]:
    """All strings in the value that contain more than whitespace, in their order. The value may be nested."""
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from texts_of(item)
    elif isinstance(value, Iterable) and not isinstance(value, bytes):
        for item in value:
            yield from texts_of(item)


def _get(row: Any, name: str) -> Any:
    """The value of a field, where `a.b` is the field `b` in the object `a`; None if the field is missing."""
    if isinstance(row, Mapping):
        if name in row:
            return row[name]
        first, _, rest = name.partition(".")
        return _get(row.get(first), rest) if rest else None
    return None
