"""Find out how a chat template handles conversations of a given shape, by rendering a probe conversation with unique
words.

Templates leave out parts that they do not support, such as system messages, tool calls, or contents of an unexpected
type.
"""

import itertools
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from data.base.errors import DataError, TemplateError
from data.examples.forms import Conversation
from data.examples.messages import THINKING_KEYS
from data.tokenization.tokenizer import Tokenizer

Message = dict[str, Any]

# A part that a template leaves out, as (index of the message, key), or (None, "tools") for the tools.
Place = tuple[int | None, str]
Shape = tuple[bool, tuple[tuple[str, tuple[str, ...], int], ...]]


@dataclass(frozen=True)
class Style:
    """The form in which a template expects tool calls. There are two conventions for arguments, and two for an empty
    content."""

    arguments_as_text: bool = False
    content_null: bool = False

    def of(self, messages: list[Message]) -> list[Message]:
        """The messages in the form that the template expects, without our own key `train`."""
        return [self._message({key: value for key, value in m.items() if key != "train"}) for m in messages]

    def _message(self, message: Message) -> Message:
        # A template reads only one of the two keys for thinking, so both are set to the same value, as in transformers
        # 5.
        thinking = next((message[key] for key in THINKING_KEYS if key in message), None)
        if thinking is not None:
            message = dict.fromkeys(THINKING_KEYS, thinking) | message
        if "tool_calls" not in message:
            return message
        if self.content_null and not message["content"]:
            message["content"] = None
        if self.arguments_as_text:
            message["tool_calls"] = [
                {**call, "function": {**call["function"], "arguments": _as_text(call["function"]["arguments"])}}
                for call in message["tool_calls"]
            ]
        return message


def _as_text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


STYLES = tuple(Style(*choice) for choice in itertools.product((False, True), repeat=2))


@dataclass(frozen=True)
class Probed:
    style: Style
    lost: frozenset[Place]


def shape_of(conversation: Conversation) -> Shape:
    """Whether there are tools, and, for each message, its role, its additional keys, and its number of tool calls."""
    messages = tuple(
        (m["role"], tuple(sorted(m.keys() - {"role", "content", "train"})), len(m.get("tool_calls", ())))
        for m in conversation.messages
    )
    return conversation.tools is not None, messages


@lru_cache(maxsize=1024)
def probe(tokenizer: Tokenizer, shape: Shape) -> Probed:
    """Return the style with which the template omits the fewest parts of a conversation of this shape, and the omitted
    parts."""
    tools, messages, words = _probe_messages(shape)
    has_calls = any(n_calls for _, _, n_calls in shape[1])
    best: Probed | None = None
    for style in STYLES if has_calls else STYLES[:1]:
        try:
            text = tokenizer.render(style.of(messages), add_generation_prompt=False, tools=tools)
        except TemplateError:
            raise
        except DataError:
            # The template rejects such conversations. This is reported when the real conversation is rendered.
            continue
        probed = Probed(style, frozenset(place for word, place in words.items() if word not in text))
        if best is None or len(probed.lost) < len(best.lost):
            best = probed
    return best or Probed(STYLES[0], frozenset())


def _probe_messages(shape: Shape) -> tuple[list[Any] | None, list[Message], dict[str, Place]]:
    """Tools and messages with the given shape, and a mapping from each unique word to the Place that contains it."""
    has_tools, of_messages = shape
    words: dict[str, Place] = {}
    numbers = itertools.count()

    def word(index: int | None, key: str) -> str:
        text = f"probe{next(numbers)}qz"
        words[text] = (index, key)
        return text

    tools = [{"type": "function", "function": _probe_tool(word(None, "tools"))}] if has_tools else None
    messages: list[Message] = []
    for index, (role, keys, n_calls) in enumerate(of_messages):
        # Templates may leave out the text of messages with tool calls. This is checked in the real conversation.
        message: Message = {"role": role, "content": "" if n_calls else word(index, "content")}
        message |= {key: word(index, key) for key in keys if key in (*THINKING_KEYS, "loss_weight")}
        # Mistral's templates expect ids that consist of nine letters and digits.
        message |= {"tool_call_id": "callprobe"} if "tool_call_id" in keys else {}
        message |= {"name": "probe"} if "name" in keys else {}
        if n_calls:
            message["tool_calls"] = [
                {
                    "type": "function",
                    "id": "callprobe",
                    "function": {
                        "name": word(index, "tool_calls"),
                        "arguments": {"probe": word(index, "tool_calls")},
                    },
                }
                for _ in range(n_calls)
            ]
        messages.append(message)
    return tools, messages, words


def _probe_tool(name: str) -> dict[str, Any]:
    properties = {"probe": {"type": "string", "description": "a probe"}}
    return {
        "name": name,
        "description": "a probe",
        "parameters": {"type": "object", "properties": properties, "required": ["probe"]},
    }
