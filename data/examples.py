"""What a valid example is, and every way it can be wrong.

An example is `{prompt: text, response: text}`; `completion` is another name for response. Further fields are ignored.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from data.errors import DataError

RESPONSE_NAMES = ("response", "completion")
SHOWN = 20
"""Problems that are written out; the others are counted."""


@dataclass(frozen=True)
class Example:
    prompt: str
    response: str


@dataclass(frozen=True)
class Problem:
    kind: str
    """What it is counted under, such as `response is empty`."""
    text: str
    """What is wrong and what to do, to stand after the place."""


@dataclass
class Problems:
    """Collects the bad rows of a source, so that they are reported together."""

    bad_rows: int = 0
    shown: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, place: str, problems: Iterable[Problem]) -> None:
        self.bad_rows += 1
        for problem in problems:
            self.kinds[problem.kind] += 1
            if len(self.shown) < SHOWN:
                self.shown.append(f"{place}: {problem.text}")

    def raise_if_any(self) -> None:
        """DataError with the first problems, each with its place, and a count by kind."""
        if not self.bad_rows:
            return
        total = sum(self.kinds.values())
        lines = [f"{_count(self.bad_rows, 'row')} cannot be used", *self.shown]
        if total > len(self.shown):
            lines.append(f"... and {total - len(self.shown)} more")
        if total > 1:
            lines.append("by kind: " + ", ".join(f"{kind} ({count})" for kind, count in self.kinds.most_common()))
        raise DataError(lines[0] + ":\n" + "\n".join(f"  {line}" for line in lines[1:]))


def read_examples(
    rows: Iterable[tuple[str, Any]], preprocess: Callable[[Any], Any] | None, problems: Problems
) -> Iterator[Example]:
    """The valid examples of `(place, row)` pairs; what is wrong goes to `problems`.

    A row may be a Problem already (a line that is not JSON). What `preprocess` raises is a problem of its row.
    """
    origin = "the row" if preprocess is None else "what preprocessing_fn returned"
    for place, row in rows:
        value = row
        if preprocess is not None and not isinstance(row, Problem):
            value = _apply(preprocess, row)
        result = [value] if isinstance(value, Problem) else check_example(value, origin)
        if isinstance(result, Example):
            yield result
        else:
            problems.add(place, result)


def check_example(value: Any, origin: str = "the row") -> Example | list[Problem]:
    """The example, or everything that is wrong with it. `origin` says where the value came from."""
    if not isinstance(value, Mapping):
        text = f"{origin} is {describe(value)}, but an object with prompt and response is needed"
        return [Problem("not an object", text)]
    given = [name for name in RESPONSE_NAMES if name in value]
    if len(given) > 1:
        both = " and ".join(given)
        return [Problem(f"both {both}", f"{origin} has both {both}, which name the same thing: leave one")]
    response = given[0] if given else RESPONSE_NAMES[0]
    checked = (_check_text(value, "prompt", origin), _check_text(value, response, origin))
    found = [problem for problem in checked if problem is not None]
    return found or Example(value["prompt"], value[response])


def _check_text(row: Mapping[str, Any], name: str, origin: str) -> Problem | None:
    if name not in row:
        return Problem(
            f"{name} is missing",
            f"{name} is missing ({origin} has {_names(row)}): add it, or say which columns to take with "
            "preprocessing_fn: {prompt: COLUMN, response: COLUMN}",
        )
    value = row[name]
    if value is None:
        return Problem(f"{name} is null", f"{name} is null, but it must be text: fill it in, or remove the row")
    if not isinstance(value, str):
        kind = type(value).__name__
        return Problem(f"{name} is not text ({kind})", f"{name} is {describe(value)}, but it must be text in quotes")
    if not value.strip():
        kind = f"{name} is only whitespace" if value else f"{name} is empty"
        seen = f" ({describe(value)})" if value else ""
        return Problem(kind, f"{kind}{seen}: fill it in, or remove the row")
    if not value.isascii() and not _is_unicode(value):
        return Problem(
            f"{name} has a lone surrogate",
            f"{name} is {describe(value)}, but it has half of a \\ud800-style pair, which is no character: remove it",
        )
    return None


def _apply(preprocess: Callable[[Any], Any], row: Any) -> Any:
    """What the function makes of the row, or the Problem that it raised."""
    try:
        return preprocess(row)
    except DataError as error:
        return Problem("preprocessing_fn refused the row", str(error))
    except Exception as error:
        at = error.__traceback__
        while at is not None and at.tb_next is not None:
            at = at.tb_next
        line = f" at {at.tb_frame.f_code.co_filename}:{at.tb_lineno}" if at is not None else ""
        has = f"; the row has {_names(row)}" if isinstance(row, Mapping) else f"; the row is {describe(row)}"
        kind = f"preprocessing_fn raised {type(error).__name__}"
        return Problem(kind, f"{kind}: {error}{line}{has}")


def describe(value: Any) -> str:
    """The value's beginning, and its type where that does not show: `12 (int)`, `'Once upon a ti...'`."""
    text = repr(value)
    short = text if len(text) <= 40 else text[:40] + "..."
    return short if isinstance(value, str) or value is None else f"{short} ({type(value).__name__})"


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(str(name) for name in row) or "no fields"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
