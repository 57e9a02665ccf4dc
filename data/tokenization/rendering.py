"""A conversation as the chat template writes it, cut into prompts and responses; nothing may be lost on the way.

Templates leave out what they do not know: a system message, calls of tools, contents of a form that they do not expect.
What a template does to conversations of a shape is found with a probe, whose texts cannot occur by accident; what it
does to the texts themselves, such as cutting out an answer's thoughts, by looking for them.
"""

import itertools
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from data.base.errors import DataError, TemplateError
from data.base.problems import Problem, describe, listed
from data.examples.examples import Conversation
from data.examples.messages import THINKING_KEYS
from data.tokenization.tokenizer import Tokenizer

PRIVATE = range(0xF0000, 0xFFFFE)
"""Characters of Unicode's private plane: they stand for what must not be taken for a special token."""

_THINKING_TAGS = ("<think>", "</think>", "<thinking>", "</thinking>", "[THINK]", "[/THINK]")
_THINKING = re.compile(
    r"<(think|thinking|thought|reasoning)>.*?</\1>|\[THINK\].*?\[/THINK\]|^.*?</think>", re.DOTALL | re.IGNORECASE
)
"""What an answer holds of the thoughts before it; a generation prompt may have opened them."""

OTHER = "other"
"""What no template may leave out."""
_SHOWN = 4
"""Places that an error names; the others are counted."""

Message = dict[str, Any]

# (message, key) of what a template does not write, of the tools (None, "tools").
_Place = tuple[int | None, str]
_Shape = tuple[bool, tuple[tuple[str, tuple[str, ...], int], ...]]


@dataclass(frozen=True)
class Part:
    """A stretch of a rendered conversation. Parts are encoded apart, so that the mask's borders fall between tokens."""

    text: str
    kind: str
    """prompt, response, or rest: what the template writes after the last turn's end."""
    train: bool | None = None
    """What the messages in it say of being trained on, if they say anything."""


# What users wrote must not become special tokens.


@dataclass(frozen=True)
class Hidden:
    """A conversation with a private character in the place of each special token that somebody wrote."""

    conversation: Conversation
    tokens: Mapping[str, str]
    """Private character -> special token."""

    def restore(self, text: str) -> str:
        for letter, token in self.tokens.items():
            text = text.replace(letter, token).replace(letter.encode("unicode_escape").decode(), token)
        return text


def hide_special_tokens(conversation: Conversation, tokenizer: Tokenizer) -> Hidden:
    """The tags around the assistant's thoughts stay special where they are: templates look for them."""
    pattern = special_pattern(tuple(tokenizer.special_tokens))
    tags = set(_THINKING_TAGS)
    texts: list[str] = []
    _map_texts([conversation.messages, conversation.tools], lambda text: texts.append(text) or text)
    if not any(pattern.search(text) for text in texts):
        return Hidden(conversation, {})
    used = {letter for text in texts for letter in text}
    free = (letter for letter in map(chr, PRIVATE) if letter not in used)
    letters: dict[str, str] = {}

    def hide(match: re.Match[str]) -> str:
        return letters[match[0]] if match[0] in letters else letters.setdefault(match[0], next(free))

    def hide_all(text: str) -> str:
        return pattern.sub(hide, text)

    def hide_but_tags(text: str) -> str:
        return pattern.sub(lambda match: match[0] if match[0] in tags else hide(match), text)

    messages = [_map_texts(m, hide_but_tags if m["role"] == "assistant" else hide_all) for m in conversation.messages]
    hidden = replace(conversation, messages=messages, tools=_map_texts(conversation.tools, hide_all))
    return Hidden(hidden, {letter: token for token, letter in letters.items()})


@lru_cache
def special_pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Any of them, the longest first, in a group."""
    return re.compile("(" + "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) + ")")


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The value with every text in it changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_texts(item, change) for key, item in value.items()}
    return [_map_texts(item, change) for item in value] if isinstance(value, list) else value


# From messages to the template's text.


@dataclass(frozen=True)
class _Style:
    """How a template wants calls of tools: for arguments and for an empty content there are two conventions each."""

    arguments_as_text: bool = False
    content_null: bool = False

    def of(self, messages: list[Message]) -> list[Message]:
        """The messages as the template gets them: without what is ours."""
        return [self._message({key: value for key, value in m.items() if key != "train"}) for m in messages]

    def _message(self, message: Message) -> Message:
        # A template reads one of the two names: each gets what the other has, as transformers 5 does.
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


_STYLES = tuple(_Style(*choice) for choice in itertools.product((False, True), repeat=2))


def render_question(conversation: Conversation, tokenizer: Tokenizer) -> str:
    """Up to where the assistant's next answer begins. Raises what Tokenizer.render does."""
    return _render(conversation, tokenizer, _probe(tokenizer, _shape(conversation)).style, ask=True)


def _render(conversation: Conversation, tokenizer: Tokenizer, style: _Style, *, ask: bool) -> str:
    messages = style.of(conversation.messages)
    return tokenizer.render(messages, add_generation_prompt=ask, tools=conversation.tools)


def split_turns(hidden: Hidden, tokenizer: Tokenizer, *, every_turn: bool) -> list[Part] | Problem:
    """The rendered conversation, cut where a response begins and ends; without every_turn only at the last one.

    The template is rendered up to each of these borders, and has to write the same up to there in the whole
    conversation: else a model would be asked otherwise than it was trained. Problem with the turn where it does not.
    Raises DataError with what the template says against the conversation, TemplateError for what it loses.
    """
    conversation = hidden.conversation
    messages, probed = conversation.messages, _probe(tokenizer, _shape(conversation))

    def rendered(stop: int, *, ask: bool) -> str:
        return _render(replace(conversation, messages=messages[:stop]), tokenizer, probed.style, ask=ask)

    whole = rendered(len(messages), ask=False)
    _check_nothing_lost(conversation, whole, probed.lost, tokenizer)
    parts: list[Part] = []
    start = first = 0
    for index, message in enumerate(messages):
        is_last = index == len(messages) - 1
        if message["role"] != "assistant" or not (every_turn or is_last):
            continue
        asked = rendered(index, ask=True)
        answered = whole if is_last else rendered(index + 1, ask=False)
        for earlier, later in ((whole[:start], asked), (asked, answered), (answered, whole)):
            if not later.startswith(earlier):
                # Where the turns before are the same, what the generation prompt adds to them is not.
                is_prompt = earlier is asked and answered.startswith(rendered(index, ask=False))
                return _not_stable(index, hidden, earlier, later, is_prompt=is_prompt, every_turn=every_turn)
        end = len(asked) + len(answered[len(asked) :].rstrip())
        never = any(m.get("train") is False for m in messages[first:index])
        parts.append(Part(whole[start : len(asked)], "prompt", False if never else None))
        parts.append(Part(whole[len(asked) : end], "response", message.get("train")))
        start, first = end, index + 1
    return [*parts, Part(whole[start:], "rest")] if start < len(whole) else parts


def _not_stable(index: int, hidden: Hidden, earlier: str, later: str, *, is_prompt: bool, every_turn: bool) -> Problem:
    same = next((at for at, (one, two) in enumerate(zip(earlier, later, strict=False)) if one != two), len(later))
    was, now = (describe(hidden.restore(text[same:])) for text in (earlier, later))
    if is_prompt:
        text = (
            f"messages[{index}] (assistant): the generation prompt ends with {was}, but the chat template writes {now} "
            "there where the answer is known, so that a model would be asked otherwise than it was trained: use a "
            "chat template that writes the same before an answer as in its generation prompt (of one that opens the "
            "assistant's thoughts, take that out of the generation prompt, or have it written before every answer)"
        )
        return Problem("the generation prompt is not in the conversation", text)
    fix = "use a tokenizer whose template leaves earlier turns as they are"
    if every_turn:
        fix += ", or train on the last answers alone (target_prompts: none, target_responses: last)"
    text = (
        f"messages[{index}] (assistant): with more turns the chat template writes what is before otherwise ({was} "
        f"became {now}), so that a model would be asked otherwise than it was trained: {fix}"
    )
    return Problem("the chat template is not prefix-stable", text)


# What the template loses.


def _check_nothing_lost(conversation: Conversation, text: str, lost: frozenset[_Place], tokenizer: Tokenizer) -> None:
    """Raises TemplateError for what is not in the text and may not be left out."""
    drops = tokenizer.chat_template_drops
    found = {name: kind for name, kind in _losses(conversation, text, lost) if kind not in drops}
    if not found:
        return
    if OTHER in found.values():
        fix = (
            "take a tokenizer whose template writes each message's text as it is (those of vision models may read "
            "lists of parts), or change chat_template in its tokenizer_config.json"
        )
    else:
        kinds = ", ".join(dict.fromkeys((*sorted(drops), *found.values())))
        fix = f"take a tokenizer whose template does, or allow it with tokenizer.chat_template_drops: [{kinds}]"
    raise TemplateError(
        f"{listed(found, _SHOWN)} {'is' if len(found) == 1 else 'are'} not in what the chat template of tokenizer "
        f"{tokenizer.name} writes: {fix}"
    )


def _losses(conversation: Conversation, text: str, lost: frozenset[_Place]) -> list[tuple[str, str]]:
    """`(name, kind)` of what is not in the text; the kind is as chat_template_drops has it, or OTHER."""
    found = [("tools", "tools")] if (None, "tools") in lost else []
    for index, message in enumerate(conversation.messages):
        role = message["role"]
        name = f"messages[{index}] ({role})"
        for key in ("tool_calls", "loss_weight"):
            found += [(f"{name}.{key}", key)] if (index, key) in lost else []
        for key in THINKING_KEYS:
            if key in message and ((index, key) in lost or not _is_in(message[key], text)):
                found.append((f"{name}.{key}", "thinking"))
        if (index, "content") not in lost and _is_in(message["content"], text):
            continue
        answer = _THINKING.sub("", message["content"]) if role == "assistant" else message["content"]
        if answer != message["content"] and _is_in(answer, text):
            found.append((f"the thinking in {name}.content", "thinking"))
        else:
            found.append((f"{name}.content", "system" if role == "system" else OTHER))
    return found


def _is_in(words: str, text: str) -> bool:
    """As it is, with other whitespace, or as JSON text, which templates write results of tools in."""
    if words.strip() in text:
        return True
    return _collapse(words) in _collapse(text) or json.dumps(words, ensure_ascii=False)[1:-1].strip() in text


def _collapse(text: str) -> str:
    return " ".join(text.split())


@dataclass(frozen=True)
class _Probed:
    style: _Style
    lost: frozenset[_Place]


def _shape(conversation: Conversation) -> _Shape:
    """Whether there are tools; of each message its role, further keys, and number of calls."""
    messages = tuple(
        (m["role"], tuple(sorted(m.keys() - {"role", "content", "train"})), len(m.get("tool_calls", ())))
        for m in conversation.messages
    )
    return conversation.tools is not None, messages


@lru_cache(maxsize=1024)
def _probe(tokenizer: Tokenizer, shape: _Shape) -> _Probed:
    """The style in which the template loses least of a conversation of that shape, and what it loses in it."""
    tools, messages, words = _probe_messages(shape)
    has_calls = any(n_calls for _, _, n_calls in shape[1])
    best: _Probed | None = None
    for style in _STYLES if has_calls else _STYLES[:1]:
        try:
            text = tokenizer.render(style.of(messages), add_generation_prompt=False, tools=tools)
        except TemplateError:
            raise
        except DataError:  # it refuses such conversations, and says why when it gets the real one
            continue
        probed = _Probed(style, frozenset(place for word, place in words.items() if word not in text))
        if best is None or len(probed.lost) < len(best.lost):
            best = probed
    return best or _Probed(_STYLES[0], frozenset())


def _probe_messages(shape: _Shape) -> tuple[list[Any] | None, list[Message], dict[str, _Place]]:
    """Tools and messages of the shape, and the words in them by their places."""
    has_tools, of_messages = shape
    words: dict[str, _Place] = {}
    numbers = itertools.count()

    def word(index: int | None, key: str) -> str:
        probe = f"probe{next(numbers)}qz"
        words[probe] = (index, key)
        return probe

    tools = [{"type": "function", "function": _probe_tool(word(None, "tools"))}] if has_tools else None
    messages: list[Message] = []
    for index, (role, keys, n_calls) in enumerate(of_messages):
        # Beside calls the text may be left out: that shows in the conversation itself.
        message: Message = {"role": role, "content": "" if n_calls else word(index, "content")}
        message |= {key: word(index, key) for key in keys if key in (*THINKING_KEYS, "loss_weight")}
        # Mistral's templates want ids of nine letters and digits.
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
