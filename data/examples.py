"""What a valid example is, and every way it can be wrong.

An example is exactly one of

- `{prompt: text, response: text}`; `completion` is another name for response,
- `{messages: [{role, content}, ...]}`, a conversation that ends with the assistant,
- `{text: text}`, a document to pretrain on,
- `{turns: [{input_ids, labels}, ...]}`, LLM Foundry's tokenized conversations.

Further columns are ignored and counted. All examples of a source have one form.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from data.errors import DataError
from data.problems import Problem, Reading, describe, other_form

RESPONSE_NAMES = ("response", "completion")
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class PromptResponse:
    form: ClassVar[str] = "prompt and response"
    prompt: str
    response: str


@dataclass(frozen=True)
class Conversation:
    """Messages of `{role, content}` and nothing else; the last is the assistant's."""

    form: ClassVar[str] = "messages"
    messages: list[dict[str, str]]


@dataclass(frozen=True)
class Text:
    form: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, eq=False)
class TokenTurns:
    """A prompt's and its response's ids (int64), turn by turn; not yet known to be ids of the tokenizer."""

    form: ClassVar[str] = "turns"
    turns: list[tuple[np.ndarray, np.ndarray]]


Example = PromptResponse | Conversation | Text | TokenTurns

FORMS: dict[str, tuple[str, ...]] = {
    PromptResponse.form: ("prompt", *RESPONSE_NAMES),
    Conversation.form: ("messages",),
    Text.form: ("text",),
    TokenTurns.form: ("turns",),
}
"""The columns of each form."""

THE_ROW = "the row"
"""Where an example came from that no preprocessing function has made."""
HELPERS = {
    ("conversations",): "openhermes",
    ("instruction", "output"): "alpaca",
    ("instruction", "response"): "dolly",
    ("inputs_pretokenized", "targets_pretokenized"): "p3",
    ("inputs", "targets"): "flan",
    ("Q", "A"): "stackmathqa",
    ("problem", "solution"): "numinamath",
    ("question", "choices", "answer"): "multiple_choice",
}
"""Columns -> the registered preprocessing function that knows them."""


def read_examples(
    rows: Iterable[tuple[str, Any]], preprocess: Callable[[Any], Any] | None, reading: Reading
) -> Iterator[Example]:
    """The valid examples of `(place, row)` pairs; all else goes to `reading`, which knows the place of each.

    A row may be a Problem already (a line that is not JSON). What `preprocess` raises is a problem of its row; a row
    for which it returns None is dropped.
    """
    origin = THE_ROW if preprocess is None else "what preprocessing_fn returned"
    for place, row in rows:
        value = row
        if preprocess is not None and not isinstance(row, Problem):
            value = _apply(preprocess, row)
            if value is None:
                reading.n_dropped += 1
                continue
        if isinstance(value, Problem):
            reading.add(place, [value])
            continue
        result = check_example(value, origin)
        if isinstance(result, list):
            reading.add(place, result)
            continue
        if result.form != (reading.form or result.form):
            reading.add(place, [other_form(result.form, reading)])
            continue
        reading.form = result.form
        reading.n_valid += 1
        reading.place = place
        reading.first_place = reading.first_place or place
        _count_ignored(value, result, reading.ignored)
        yield result


def check_example(value: Any, origin: str = THE_ROW) -> Example | list[Problem]:
    """The example, or everything that is wrong with it. `origin` says where the value came from."""
    if not isinstance(value, Mapping):
        text = (
            f"{origin} is {describe(value)}, but an object with prompt and response, messages, text or turns is needed"
        )
        return [Problem("not an object", text)]
    given = [form for form, names in FORMS.items() if any(name in value for name in names)]
    if len(given) > 1:
        return [_both_forms(value, given, origin)]
    form = given[0] if given else PromptResponse.form
    return _CHECKS[form](value, origin)


def _check_prompt_response(row: Mapping[str, Any], origin: str) -> Example | list[Problem]:
    given = [name for name in RESPONSE_NAMES if name in row]
    if len(given) > 1:
        both = " and ".join(given)
        return [Problem(f"both {both}", f"{origin} has both {both}, which name the same thing: leave one")]
    name = given[0] if given else RESPONSE_NAMES[0]
    prompt, response = _check_column(row, "prompt", origin), _check_column(row, name, origin)
    problems = [problem for problem in (prompt, response) if problem is not None]
    return problems or PromptResponse(row["prompt"], row[name])


def _check_text(row: Mapping[str, Any], origin: str) -> Example | list[Problem]:
    if origin == THE_ROW and (helper := _known_columns(row)) is not None:
        columns, name = helper
        text = (
            f"has {', '.join(columns)} beside text, of which every token would be trained on, the prompt's too: write "
            f"preprocessing_fn: {name}, or to train on the text as it is remove those columns"
        )
        return [Problem("a known dataset's columns beside text", text)]
    problem = _check_column(row, "text", origin)
    return Text(row["text"]) if problem is None else [problem]


def _check_column(row: Mapping[str, Any], name: str, origin: str) -> Problem | None:
    if name in row:
        return check_content(row[name], name)
    return Problem(
        f"{name} is missing",
        f"{name} is missing ({origin} has {_names(row)}): add it, or say which columns to take with "
        f"preprocessing_fn: {{prompt: COLUMN, response: COLUMN}}{_helper(row)}",
    )


def check_content(value: Any, name: str, way_out: str = "fill it in, or remove the row") -> Problem | None:
    """What is wrong with a value that must be text with something in it. `name` is what it is called."""
    kind = name.rpartition(".")[2]
    if value is None:
        return Problem(f"{kind} is null", f"{name} is null, but it must be text: {way_out}")
    if not isinstance(value, str):
        text = f"{name} is {describe(value)}, but it must be text in quotes"
        return Problem(f"{kind} is not text ({type(value).__name__})", text)
    if not value or value.isspace():
        wrong = "is only whitespace" if value else "is empty"
        seen = f" ({describe(value)})" if value else ""
        return Problem(f"{kind} {wrong}", f"{name} {wrong}{seen}: {way_out}")
    if not value.isascii() and not _is_unicode(value):
        text = f"{name} is {describe(value)}, but it has half of a \\ud800-style pair, which is no character: remove it"
        return Problem(f"{kind} has a lone surrogate", text)
    return None


def _check_messages(row: Mapping[str, Any], origin: str) -> Example | list[Problem]:
    """LLM Foundry's rules for the order of turns, and that a system message comes first."""
    messages = _as_list(row["messages"])
    if messages is None:
        text = f"messages is {describe(row['messages'])}, but it must be a list of {{role, content}}"
        return [Problem("messages is not a list", text)]
    if len(messages) < 2:
        there = "only one turn" if messages else "empty"
        text = f"messages is {there}, but a conversation needs at least what is asked and the assistant's answer"
        return [Problem(f"messages is {there}", f"{text}: add it, or remove the row")]
    problems: list[Problem] = []
    for index, message in enumerate(messages):
        problems += _check_message(message, f"messages[{index}]")
    return problems or _check_order(messages) or Conversation([_plain(message) for message in messages])


def _check_message(message: Any, name: str) -> list[Problem]:
    if not isinstance(message, Mapping):
        text = f"{name} is {describe(message)}, but it must be an object with role and content"
        return [Problem("a message is not an object", text)]
    missing = [key for key in ("role", "content") if key not in message]
    if missing:
        hint = ""
        if "from" in message and "value" in message:
            hint = ": these are ShareGPT's names, which preprocessing_fn: openhermes takes from a column conversations"
        both = " and ".join(missing)
        return [Problem(f"a message has no {both}", f"{name} has no {both} (it has {_names(message)}){hint}")]
    role = message["role"]
    problems: list[Problem] = []
    if role not in ROLES:
        text = f"{name}.role is {describe(role)}, but it must be one of {', '.join(ROLES)}"
        problems.append(Problem("unknown role", text))
    said = f" ({role})" if isinstance(role, str) and role in ROLES else ""
    content = check_content(message["content"], f"{name}{said}.content")
    return problems if content is None else [*problems, content]


def _check_order(messages: Sequence[Mapping[str, str]]) -> list[Problem]:
    problems: list[Problem] = []
    before = None
    for index, message in enumerate(messages):
        wrong = _out_of_order(message["role"], before)
        if wrong is not None:
            problems.append(Problem(wrong[0], f"messages[{index}] ({message['role']}) {wrong[1]}"))
        before = message["role"]
    if before != "assistant":
        text = (
            f"messages[{len(messages) - 1}] ({before}) is the last, but a conversation must end with the assistant, "
            "whose answers are trained on: remove it, or add the answer"
        )
        problems.append(Problem("does not end with the assistant", text))
    return problems


def _out_of_order(role: str, before: str | None) -> tuple[str, str] | None:
    """The kind of what is wrong with a turn after the one before it, and how to say so."""
    if role == "system":
        if before is None:
            return None
        return "system is not first", "is not the first: begin with what it says, or put it into the user's turn"
    if before is None and role != "user":
        return "does not begin with the user", "is the first, but a conversation begins with system or user"
    if role == before and role != "tool":
        return "repeated roles", f"follows another turn by the {role}: join the two, or add the turn between them"
    if role == "tool" and before not in ("assistant", "tool"):
        return "tool out of place", f"follows the {before}, but a tool's result follows the assistant that called it"
    return None


def _check_turns(row: Mapping[str, Any], origin: str) -> Example | list[Problem]:
    turns = _as_list(row["turns"])
    if not turns:
        text = f"turns is {describe(row['turns'])}, but it must be a list of {{input_ids, labels}}"
        return [Problem("turns is not a list with turns", text)]
    problems: list[Problem] = []
    ids: list[tuple[np.ndarray, np.ndarray]] = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or "input_ids" not in turn or "labels" not in turn:
            seen = f"has {_names(turn)}" if isinstance(turn, Mapping) else f"is {describe(turn)}"
            text = f"turns[{index}] {seen}, but it must be an object with input_ids and labels"
            problems.append(Problem("a turn is not {input_ids, labels}", text))
            continue
        prompt, response = (_token_ids(turn[key]) for key in ("input_ids", "labels"))
        for key, value in (("input_ids", prompt), ("labels", response)):
            if value is None:
                text = f"turns[{index}].{key} is {describe(turn[key])}, but it must be a list of at least one token id"
                problems.append(Problem(f"{key} is not a list of token ids", text))
        if prompt is not None and response is not None:
            ids.append((prompt, response))
    return problems or TokenTurns(ids)


def _token_ids(value: Any) -> np.ndarray | None:
    """Whole numbers, at least one, as int64."""
    if not isinstance(value, list | tuple | np.ndarray):
        return None
    try:
        ids = np.asarray(value)
    except ValueError:  # lists of different lengths in it
        return None
    return ids.astype(np.int64) if ids.ndim == 1 and len(ids) and ids.dtype.kind in "iu" else None


_CHECKS: dict[str, Callable[[Mapping[str, Any], str], Example | list[Problem]]] = {
    PromptResponse.form: _check_prompt_response,
    Conversation.form: _check_messages,
    Text.form: _check_text,
    TokenTurns.form: _check_turns,
}


def _both_forms(row: Mapping[str, Any], given: list[str], origin: str) -> Problem:
    columns = [name for form in given for name in FORMS[form] if name in row]
    text = (
        f"{origin} has {' and '.join(columns)}, but an example has exactly one form, {' or '.join(given)}: leave one, "
        f"or choose with a preprocessing_fn{_helper(row)}"
    )
    return Problem(f"both {' and '.join(given)}", text)


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


def _count_ignored(value: Mapping[str, Any], example: Example, ignored: Counter[str]) -> None:
    used = FORMS[example.form]
    ignored.update(_printable(name) for name in value if name not in used)
    if isinstance(example, Conversation):
        extra = {key for message in value["messages"] if len(message) > 2 for key in message}
        ignored.update(f"messages[].{_printable(key)}" for key in extra - {"role", "content"})


def _printable(name: Any) -> str:
    """A lone surrogate, which JSON can write and no terminal can take, as its escape."""
    return str(name).encode(errors="backslashreplace").decode()


def _helper(row: Mapping[str, Any]) -> str:
    """A hint to the preprocessing function that is registered for such columns."""
    known = _known_columns(row)
    return f" (for these columns: preprocessing_fn: {known[1]})" if known is not None else ""


def _known_columns(row: Mapping[str, Any]) -> tuple[tuple[str, ...], str] | None:
    return next((item for item in HELPERS.items() if all(column in row for column in item[0])), None)


def _plain(message: Mapping[str, str]) -> dict[str, str]:
    return {"role": message["role"], "content": message["content"]}


def _as_list(value: Any) -> list[Any] | None:
    """Lists, and what MDS and parquet give in their place."""
    return list(value) if isinstance(value, list | tuple | np.ndarray) else None


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(str(name) for name in row) or "no fields"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
