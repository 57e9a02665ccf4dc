"""Read and check the messages of a conversation: `{role, content, ...}`. The common formats are accepted.

A message may also have these keys, which are kept:

- `train`: whether the message is trained on, from `train: true | false` or `weight: 0 | 1` (OpenAI, Mistral);
- `tool_calls`: `[{type, function: {name, arguments}, id}]`; `function_call` (OpenAI's older format) is converted to
  this format;
- `reasoning_content`, `thinking`: the assistant's reasoning, which a chat template may write before the answer;
- `loss_weight`: kept so that chat templates without support for it are detected;
- `name`, `tool_call_id`: for the results of tools.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.base.problems import Problem, check_text, describe

ROLES = ("system", "user", "assistant", "tool")
THINKING_KEYS = ("reasoning_content", "thinking")
_TOOL_KEYS = ("name", "tool_call_id")
_MESSAGE_KEYS = (
    *("role", "content", "weight", "train", "loss_weight", "tool_calls", "function_call"),
    *THINKING_KEYS,
)


def read_messages(value: Any) -> list[dict[str, Any]] | list[Problem]:
    """The messages in a uniform format, or all problems with the messages. The last message is from the assistant.

    `value` is a list, or its JSON text. Parts `[{type: text, text}]` are concatenated. A system message without text is
    left out. The order of the turns must follow LLM Foundry's rules.
    """
    items = as_list(value)
    if items is None:
        text = f"messages is {describe(value)}, but it must be a list of {{role, content}}"
        return [Problem("messages is not a list", text)]
    problems: list[Problem] = []
    messages: dict[int, dict[str, Any]] = {}
    for index, item in enumerate(items):
        if _is_empty_system(item):
            continue
        message = _read_message(item, f"messages[{index}]")
        if isinstance(message, dict):
            messages[index] = message
        else:
            problems += message
    if not problems and len(messages) < 2:
        there = "only one turn" if messages else "empty"
        text = f"messages is {there}, but a conversation requires at least a question and the assistant's answer"
        return [Problem(f"messages is {there}", f"{text}: add the missing turns, or remove the row")]
    return problems or _check_order(messages) or list(messages.values())


def unused_in(value: Any) -> set[str]:
    """The names, such as `messages[].id`, under which the unused keys of valid messages are counted."""
    unused: set[str] = set()
    for message in as_list(value) or ():
        used = (*_MESSAGE_KEYS, *(_TOOL_KEYS if message["role"] in ("tool", "function") else ()))
        unused.update(f"messages[].{printable(key)}" for key in message if key not in used)
        if _is_empty_system(message):
            unused.add("empty system messages")
    return unused


def _is_empty_system(message: Any) -> bool:
    if not isinstance(message, Mapping) or message.get("role") != "system" or "content" not in message:
        return False
    content = message["content"]
    if isinstance(content, list | tuple | np.ndarray):
        content = _join_parts(list(content), "")
    return content is None or (isinstance(content, str) and not content.strip())


def _read_message(message: Any, name: str) -> dict[str, Any] | list[Problem]:
    if not isinstance(message, Mapping):
        text = f"{name} is {describe(message)}, but it must be an object with role and content"
        return [Problem("a message is not an object", text)]
    calls = has_value(message.get("tool_calls")) or has_value(message.get("function_call"))
    missing = [key for key in ("role", "content") if key not in message and not (key == "content" and calls)]
    if missing:
        both = " and ".join(missing)
        return [Problem(f"a message has no {both}", f"{name} has no {both} (it has {key_names(message)})")]
    role = "tool" if message["role"] == "function" else message["role"]
    if not isinstance(role, str) or role not in ROLES:
        text = f"{name}.role is {describe(role)}, but it must be one of {', '.join(ROLES)}"
        content = _read_content(message, name, calls=calls)
        return [Problem("unknown role", text), *([content] if isinstance(content, Problem) else [])]
    name = f"{name} ({role})"
    content = _read_content(message, name, calls=calls)
    read = {"role": role, "content": content}
    if message.keys() != read.keys():
        read |= _read_more(message, role, name, calls=calls)
    problems = [value for value in read.values() if isinstance(value, Problem)]
    return problems or read


def _read_more(message: Mapping[str, Any], role: str, name: str, *, calls: bool) -> dict[str, Any]:
    """The supported additional keys of a message, with their values. An invalid value is replaced with a Problem."""
    read = {
        "train": _read_train(message, name),
        "tool_calls": _read_calls(message, name) if calls else None,
        **{key: _read_thinking(message.get(key), f"{name}.{key}") for key in THINKING_KEYS},
        "loss_weight": None if message.get("loss_weight") == 1 else message.get("loss_weight"),
        **{key: message.get(key) for key in _TOOL_KEYS if role == "tool"},
    }
    return {key: value for key, value in read.items() if value is not None}


def _read_content(message: Mapping[str, Any], name: str, *, calls: bool) -> str | Problem:
    """The text of the content; "" if there is no content. A message without content must have tool calls."""
    content, key = message.get("content"), f"{name}.content"
    parts = as_list(content) if not isinstance(content, str) else None
    if parts is not None and any(isinstance(part, Mapping) for part in parts):
        content = _join_parts(parts, key)
        if isinstance(content, Problem):
            return content
    if calls and not has_text(content):
        return ""
    problem = check_text(content, key)
    return str(content) if problem is None else problem


def _join_parts(parts: Sequence[Any], name: str) -> str | Problem:
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            seen = f"of type {describe(kind)}" if isinstance(kind, str) and kind != "text" else describe(part)
            text = (
                f"{name}[{index}] is {seen}, but only parts {{type: text, text: ...}} are supported: remove this "
                "part, or remove the row"
            )
            return Problem("a part of a message is not text", text)
    return "".join(part["text"] for part in parts)


def _read_train(message: Mapping[str, Any], name: str) -> bool | Problem | None:
    weight, train = message.get("weight"), message.get("train")
    if train is not None and not isinstance(train, bool | np.bool_):
        text = f"{name}.train is {describe(train)}, but it must be true or false"
        return Problem("train is not true or false", text)
    if weight is not None and not (isinstance(weight, int | float | np.number) and weight in (0, 1)):
        text = f"{name}.weight is {describe(weight)}, but it must be 0 or 1 (1: the message is trained on)"
        return Problem("weight is not 0 or 1", text)
    if None not in (weight, train) and bool(weight) != bool(train):
        text = f"{name} has weight {weight} and train {str(bool(train)).lower()}, which contradict each other"
        return Problem("weight and train contradict", f"{text}: remove one of the two keys")
    given = weight if train is None else train
    return None if given is None else bool(given)


def _read_thinking(value: Any, name: str) -> str | Problem | None:
    if not has_value(value):
        return None
    return check_text(value, name) or value


def _read_calls(message: Mapping[str, Any], name: str) -> list[dict[str, Any]] | Problem:
    key = "tool_calls" if has_value(message.get("tool_calls")) else "function_call"
    value = from_json(message[key])
    calls = as_list(value) if not isinstance(value, Mapping) else [value]
    if message["role"] != "assistant":
        text = f"{name} has {key}, but only the assistant can call tools: remove {key}"
        return Problem(f"{key} in a message of another role", text)
    read = [_read_call(call) for call in calls or ()]
    if not read or None in read:
        text = f"{name}.{key} is {describe(message[key])}, but a tool call must be {{function: {{name, arguments}}}}"
        return Problem(
            f"{key} is not a tool call", f"{text}: write the function's name, and its arguments as an object"
        )
    return [call for call in read if call is not None]


def _read_call(call: Any) -> dict[str, Any] | None:
    """The tool call as `{type, function: {name, arguments}}`, with its id if it has one; None if the value is not a
    tool call."""
    if not isinstance(call, Mapping):
        return None
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not has_text(function.get("name")):
        return None
    # Arguments given as a JSON string, as in OpenAI's format, are parsed, because most chat templates expect an object.
    given = function.get("arguments")
    arguments = without_nulls(given) if isinstance(given, Mapping) else from_json(given) if has_value(given) else {}
    more = {key: value for key, value in call.items() if key in ("id", "type") and has_value(value)}
    return {"type": "function", **more, "function": {"name": function["name"], "arguments": arguments}}


def read_tools(row: Mapping[str, Any]) -> list[Any] | Problem | None:
    """The row's `tools`, given as a list or its JSON text, or as `functions`, which is OpenAI's older name for
    `tools`."""
    key = next((key for key in ("tools", "functions") if has_value(row.get(key))), None)
    if key is None:
        return None
    tools = as_list(row[key])
    if tools is None or not all(isinstance(tool, Mapping) and has_text(tool_name(tool)) for tool in tools):
        text = f"{key} is {describe(row[key])}, but it must be a list of {{type: function, function: {{name, ...}}}}"
        return Problem(f"{key} is not a list of tools", text)
    tools = without_nulls(tools)
    return [{"type": "function", "function": tool} for tool in tools] if key == "functions" else tools


def tool_name(tool: Mapping[str, Any]) -> Any:
    function = tool.get("function", tool)
    return function.get("name") if isinstance(function, Mapping) else None


def _check_order(messages: Mapping[int, Mapping[str, Any]]) -> list[Problem]:
    """Check LLM Foundry's rules for the order of turns, and that a system message comes first. The keys of `messages`
    are the indices of the messages."""
    problems: list[Problem] = []
    index, before = 0, None
    for index, message in messages.items():
        defect = _out_of_order(message["role"], before)
        if defect is not None:
            problems.append(Problem(defect[0], f"messages[{index}] ({message['role']}) {defect[1]}"))
        before = message["role"]
    if before != "assistant":
        text = (
            f"messages[{index}] ({before}) is the last message, but a conversation must end with the assistant, "
            "whose answers are trained on: remove this message, or add the assistant's answer"
        )
        problems.append(Problem("the conversation does not end with the assistant", text))
    return problems


def _out_of_order(role: str, before: str | None) -> tuple[str, str] | None:
    """The kind and text of the problem if the turn is not allowed after the turn `before`; otherwise None."""
    if role == "system":
        if before is None:
            return None
        return (
            "the system message is not first",
            "is not the first message: move its text to the beginning, or into the user's turn",
        )
    if before is None and role != "user":
        return (
            "the conversation does not begin with the user",
            "is the first message, but a conversation must begin with system or user",
        )
    if role == before and role != "tool":
        return (
            "repeated roles",
            f"follows another turn of the {role}: join the two turns, or add the turn that is missing between them",
        )
    if role == "tool" and before not in ("assistant", "tool"):
        return (
            "a tool's result does not follow the assistant",
            f"follows the {before}, but a tool's result must follow the assistant's call",
        )
    return None


def has_value(value: Any) -> bool:
    """Whether the value is not empty. In table formats such as Parquet, rows without the key have a null or empty
    value."""
    return value is not None and not (isinstance(value, str | list | tuple | dict | np.ndarray) and len(value) == 0)


def has_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def as_list(value: Any) -> list[Any] | None:
    """The value as a list, if it is a list, an array (as in MDS and Parquet) or the JSON text of a list; otherwise
    None."""
    value = from_json(value)
    return list(value) if isinstance(value, list | tuple | np.ndarray) else None


def from_json(value: Any) -> Any:
    """The parsed value, if the value is the JSON text of an object or a list; otherwise the value unchanged."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def without_nulls(value: Any) -> Any:
    """Remove keys that are null. In table formats such as Parquet, every object has the keys of all other objects."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple | np.ndarray):
        return [without_nulls(item) for item in value]
    return value


def printable(name: Any) -> str:
    """Escape lone surrogates, which JSON can contain but terminals cannot print."""
    return str(name).encode(errors="backslashreplace").decode()


def key_names(row: Mapping[str, Any]) -> str:
    return ", ".join(name if name == str(name).strip() else repr(name) for name in map(str, row)) or "no fields"
