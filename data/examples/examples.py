"""Check examples, with a message for each possible defect.

An example has exactly one of these forms:

- `{prompt: text, response: text}`; `completion` is another name for response,
- `{messages: [{role, content}, ...]}`, a conversation that ends with the assistant (messages.py), optionally with the
  assistant's `tools`; TRL's form `{prompt: messages, completion: messages}` is converted to this form,
- `{text: text}`, a document for pretraining,
- `{turns: [{input_ids, labels}, ...]}`, LLM Foundry's tokenized conversations.

A column that is null counts as missing. Additional columns that would affect what is trained on are errors. Other
additional columns are ignored and counted. All examples of a source must have the same form.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data.base.errors import DataError, setting
from data.base.problems import Problem, Reading, check_text, describe, other_form
from data.examples.forms import FORMS, PAIR, RESPONSE_NAMES, Conversation, Example, PromptResponse, Text, TokenTurns
from data.examples.messages import (
    THINKING_KEYS,
    as_list,
    has_value,
    key_names,
    printable,
    read_messages,
    read_tools,
    unused_in,
)
from data.examples.preprocessing import PREPROCESSORS, TakeColumns

THE_ROW = "the row"
"""The text with which error messages refer to an example that was not made by a preprocessing function."""
KNOWN_COLUMNS = {
    ("conversations",): "sharegpt",
    ("conversation",): "sharegpt",
    ("messages",): "sharegpt",
    ("instruction", "output"): "alpaca",
    ("instruction", "response"): "dolly",
    ("inputs_pretokenized", "targets_pretokenized"): "p3",
    ("inputs", "targets"): "flan",
    ("Q", "A"): "stackmathqa",
    ("problem", "solution"): "numinamath",
    ("question", "choices", "answer"): "multiple_choice",
}
"""Maps columns to the registered preprocessing function that reads them."""
PAIRS = (
    *(("question", "answer"), ("input", "output"), ("query", "response"), ("question", "response")),
    *(("query", "answer"), ("prompt", "chosen"), ("prompt", "answer"), ("prompt", "output")),
)
"""Pairs of columns that usually contain a prompt and its response."""
_ASKED = ("system", "system_prompt", "history")
"""Columns that usually contain a part of the assistant's input."""
_ANSWERED = ("tool_calls", "function_call", *THINKING_KEYS)
_TOOLS = ("tools", "functions")
_UNSUPPORTED = {
    PromptResponse.form: frozenset((*_ASKED, *_ANSWERED, *_TOOLS, "context")),
    Conversation.form: frozenset((*_ASKED, *_ANSWERED)),
    Text.form: frozenset((*_ASKED, *_ANSWERED, *_TOOLS, "role", "parent_id")),
    TokenTurns.form: frozenset((*_ASKED, *_ANSWERED, *_TOOLS)),
}
"""Additional columns of each form that would affect the input or what is trained on, but are not supported."""
_WEIGHTS = frozenset(("weight", "loss_weight", "train"))


def read_examples(
    rows: Iterable[tuple[Any, Any]], preprocess: Callable[[Any], Any] | None, reading: Reading
) -> Iterator[tuple[Any, Example]]:
    """Yield `(place, example)` for the valid examples of `(place, row)` pairs. The place is the location of the row in
    its source, usually a Place (data/base/problems.py). All other rows are recorded in `reading` with their locations.

    A row may already be a Problem (such as a line that is not JSON). If `preprocess` raises an exception for a row, the
    exception is recorded as a problem of the row. If `preprocess` returns None, the row is dropped.
    """
    origin = THE_ROW if preprocess is None else f"the result of {setting('preprocessing_fn')}"
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
        reading.first_place = reading.first_place or str(place)
        _count_ignored(value, result, reading.ignored)
        if isinstance(preprocess, TakeColumns) and isinstance(row, Mapping):
            reading.ignored.update(_unused(row, preprocess.columns.values()))
        yield place, result


def check_example(value: Any, origin: str = THE_ROW) -> Example | list[Problem]:
    """The example, or all its problems. `origin` is the text that messages use to refer to the value, such as `the
    row`."""
    if not isinstance(value, Mapping):
        what = "it must be an object with prompt and response, messages, text or turns"
        hint = ': write {"messages": [...]}' if _is_messages(value) else ""
        return [Problem("not an object", f"{origin} is {describe(value)}, but {what}{hint}")]
    form = _form_of(value)
    if isinstance(form, list):
        return [_both_forms(value, form, origin)]
    problems = _unsupported(value, form, origin)
    example = _CHECKS[form](value, origin)
    return [*example, *problems] if isinstance(example, list) else problems or example


def _form_of(row: Mapping[str, Any]) -> str | list[str]:
    """The form of the row, or a list of forms if the row has the columns of several forms."""
    given = [form for form, names in FORMS.items() if any(row.get(name) is not None for name in names)]
    if not given:  # a column that is null counts as missing
        given = [form for form, names in FORMS.items() if any(name in row for name in names)][:1]
    if given == [PromptResponse.form, Conversation.form] and _repeats_a_message(row):
        return Conversation.form
    if given == [PromptResponse.form] and _is_pair_of_messages(row):
        return Conversation.form
    return given if len(given) > 1 else given[0] if given else PromptResponse.form


def _repeats_a_message(row: Mapping[str, Any]) -> bool:
    """Whether the row's prompt only repeats one of its messages, as in UltraChat."""
    return not _responses(row) and _is_a_message(row, row["prompt"])


def _is_pair_of_messages(row: Mapping[str, Any]) -> bool:
    """Whether the row has TRL's form: prompt, completion or both are lists of messages."""
    responses = _responses(row)
    both = row.get("prompt") is not None and bool(responses)
    return both and (_is_messages(row["prompt"]) or _is_messages(row[responses[0]]))


def _responses(row: Mapping[str, Any]) -> list[str]:
    """The names of the row's response columns."""
    return [name for name in RESPONSE_NAMES if row.get(name) is not None]


def _is_messages(value: Any) -> bool:
    items = as_list(value) if not isinstance(value, str) else None
    return bool(items) and all(isinstance(item, Mapping) and ("role" in item or "from" in item) for item in items)


def _unsupported(row: Mapping[str, Any], form: str, origin: str) -> list[Problem]:
    """A Problem for each unsupported column that would affect the input or what is trained on."""
    fix = f"remove the column, or handle it in a {setting('preprocessing_fn')} (module:function)"
    problems = [
        Problem(
            f"{key} in addition to {form}",
            f"has {key} in addition to {form}, but {key} would not be used: {fix}{_advice(row, origin)}",
        )
        for key in row
        if key in _UNSUPPORTED[form] and has_value(row[key]) and not _is_a_message(row, row[key])
    ]
    for key in row:
        if key in _WEIGHTS and (value := row[key]) is not None and not (np.isscalar(value) and value == 1):
            text = f"has {key} {describe(value)}, but weights for rows are not supported: {fix}"
            problems.append(Problem(f"a row has {key}", text))
    if form == PromptResponse.form and isinstance(row.get("label"), bool | np.bool_) and not row["label"]:
        text = f"has label false, which marks an unwanted answer that would be trained on: {fix}"
        problems.append(Problem("a row has label false", text))
    return problems


def _is_a_message(row: Mapping[str, Any], text: Any) -> bool:
    messages = [message for message in as_list(row.get("messages")) or () if isinstance(message, Mapping)]
    return isinstance(text, str) and any(_same_words(message.get("content"), text) for message in messages)


def _same_words(content: Any, text: str) -> bool:
    return isinstance(content, str) and content.strip() == text.strip()


def _check_prompt_response(row: Mapping[str, Any], origin: str) -> Example | list[Problem]:
    given = _responses(row)
    if len(given) > 1:
        both = " and ".join(given)
        return [Problem(f"both {both}", f"{origin} has both {both}, which are synonyms: remove one of the columns")]
    name = next((name for name in (*given, *RESPONSE_NAMES) if name in row), RESPONSE_NAMES[0])
    missing = _missing(row, ("prompt", name), origin)
    checked = [check_text(row[key], key) for key in ("prompt", name) if key in row]
    problems = [problem for problem in (missing, *checked) if problem is not None]
    return problems or PromptResponse(row["prompt"], row[name])


def _check_text(row: Mapping[str, Any], origin: str) -> Example | list[Problem]:
    if origin == THE_ROW and (known := _reader_of(row, pairs=())) is not None:
        columns, reader = known
        text = (
            f"has {', '.join(columns)} in addition to text, and all tokens of the text would be trained on, including "
            f"the prompt: set {setting('preprocessing_fn', reader)}, or remove those columns to train on the "
            "unchanged text"
        )
        return [Problem("a known dataset's columns in addition to text", text)]
    problem = check_text(row["text"], "text")
    return Text(row["text"]) if problem is None else [problem]


def _missing(row: Mapping[str, Any], names: Iterable[str], origin: str) -> Problem | None:
    absent = [name for name in names if name not in row]
    if not absent:
        return None
    kind = f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing"
    it = "the column" if len(absent) == 1 else "the columns"
    columns = setting("preprocessing_fn", {"prompt": "COLUMN", "response": "COLUMN"})
    return Problem(
        kind,
        f"{kind} ({origin} has {key_names(row)}): add {it}, select columns with {columns}, or create {it} "
        f"with your own function (module:function){_advice(row, origin)}",
    )


def _check_messages(row: Mapping[str, Any], origin: str) -> Example | list[Problem]:
    value = row["messages"] if row.get("messages") is not None else _joined(row)
    messages, tools = read_messages(value), read_tools(row)
    problems = [message for message in messages if isinstance(message, Problem)]
    problems += [tools] if isinstance(tools, Problem) else []
    if problems or isinstance(tools, Problem):
        # Some datasets use other names for messages and roles, so a preprocessing function for these datasets is
        # suggested.
        first, *more = problems
        return [Problem(first.kind, f"{first.text}{_advice(row, origin)}"), *more]
    return Conversation([message for message in messages if isinstance(message, dict)], tools)


def _joined(row: Mapping[str, Any]) -> Any:
    """TRL's prompt and completion as one list of messages. Only the completion is trained on."""
    responses = _responses(row)
    if row.get("prompt") is None or not responses:
        return row.get("messages")
    prompt, response = row["prompt"], row[responses[0]]
    asked = as_list(prompt) if _is_messages(prompt) else [{"role": "user", "content": prompt}]
    answer = as_list(response) if _is_messages(response) else [{"role": "assistant", "content": response}]
    # Earlier answers of the assistant are part of the prompt, so they are not trained on.
    asked = [
        {"train": False, **message} if message.get("role") == "assistant" and "weight" not in message else message
        for message in asked or ()
    ]
    return [*asked, *(answer or ())]


def _check_turns(row: Mapping[str, Any], origin: str) -> Example | list[Problem]:
    turns = as_list(row["turns"])
    if not turns:
        text = f"turns is {describe(row['turns'])}, but it must be a list of {{input_ids, labels}}"
        return [Problem("turns is not a list with turns", text)]
    problems: list[Problem] = []
    ids: list[tuple[np.ndarray, np.ndarray]] = []
    for index, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or "input_ids" not in turn or "labels" not in turn:
            seen = f"has {key_names(turn)}" if isinstance(turn, Mapping) else f"is {describe(turn)}"
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
    """The ids as int64, or None if the value is not a non-empty list of integers."""
    if not isinstance(value, list | tuple | np.ndarray):
        return None
    try:
        ids = np.asarray(value)
    except ValueError:  # nested lists of different lengths
        return None
    return ids.astype(np.int64) if ids.ndim == 1 and len(ids) and ids.dtype.kind in "iu" else None


_CHECKS: dict[str, Callable[[Mapping[str, Any], str], Example | list[Problem]]] = {
    PromptResponse.form: _check_prompt_response,
    Conversation.form: _check_messages,
    Text.form: _check_text,
    TokenTurns.form: _check_turns,
}


def _both_forms(row: Mapping[str, Any], given: list[str], origin: str) -> Problem:
    columns = [name for form in given for name in FORMS[form] if row.get(name) is not None]
    text = (
        f"{origin} has {' and '.join(columns)}, but an example must have exactly one form, {' or '.join(given)}: "
        f"remove the columns of one form, or select one form with a {setting('preprocessing_fn')}{_advice(row, origin)}"
    )
    return Problem(f"both {' and '.join(given)}", text)


def _apply(preprocess: Callable[[Any], Any], row: Any) -> Any:
    """The result of the preprocessing function, or a Problem if the function raises an exception."""
    try:
        return preprocess(row)
    except DataError as error:
        return Problem("preprocessing_fn rejected the row", str(error))
    except Exception as error:
        at = error.__traceback__
        while at is not None and at.tb_next is not None:
            at = at.tb_next
        line = f" at {at.tb_frame.f_code.co_filename}:{at.tb_lineno}" if at is not None else ""
        has = f"; the row has {key_names(row)}" if isinstance(row, Mapping) else f"; the row is {describe(row)}"
        raised = f"raised {type(error).__name__}"
        return Problem(f"preprocessing_fn {raised}", f"{setting('preprocessing_fn')} {raised}: {error}{line}{has}")


def _count_ignored(value: Mapping[str, Any], example: Example, ignored: Counter[str]) -> None:
    used = FORMS[example.form]
    if isinstance(example, Conversation):
        in_messages = value.get("messages") is not None
        used = ("messages", "tools", "functions", *(() if in_messages else PAIR))
        for name in ("messages",) if in_messages else PAIR:
            if _is_messages(value.get(name)):
                ignored.update(unused_in(value[name]))
    ignored.update(_unused(value, used))


def _unused(row: Mapping[str, Any], used: Iterable[str]) -> Iterator[str]:
    """The names under which the row's unused columns are counted."""
    names = set(used)
    return (printable(name) for name in row if name not in names and row[name] is not None)


def _advice(row: Mapping[str, Any], origin: str) -> str:
    """Suggests a preprocessing function for the row's columns, unless the row was made by such a function."""
    known = _reader_of(row) if origin == THE_ROW else None
    return f" (for these columns: {setting('preprocessing_fn', known[1])})" if known is not None else ""


def _reader_of(
    row: Mapping[str, Any], pairs: Sequence[tuple[str, str]] = PAIRS
) -> tuple[tuple[str, ...], str | Mapping[str, str]] | None:
    """The columns of a known dataset that the row has, and a preprocessing_fn that can convert the row."""
    for columns, name in KNOWN_COLUMNS.items():
        if all(column in row for column in columns) and _makes_an_example(PREPROCESSORS[name], row):
            return columns, name
    if not pairs or any(has_value(row.get(name)) for name in _UNSUPPORTED[PromptResponse.form]):
        return None  # a mapping of columns would ignore these columns
    for prompt, response in pairs:
        take = TakeColumns({"prompt": prompt, "response": response})
        if prompt in row and response in row and _makes_an_example(take, row):
            return (prompt, response), take.columns
    return None


def _makes_an_example(preprocess: Callable[[Any], Any], row: Mapping[str, Any]) -> bool:
    made = _apply(preprocess, row)
    return isinstance(made, Mapping) and not isinstance(check_example(made, "the result of preprocessing_fn"), list)
