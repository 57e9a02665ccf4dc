"""Before the chat template is rendered, hide special tokens that are written in the messages, so that they are encoded
as text."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from data.examples.forms import Conversation
from data.tokenization.tokenizer import Tokenizer

PRIVATE = range(0xF0000, 0xFFFFE)
"""Characters of a Unicode private-use plane, which replace special tokens that must be encoded as text."""

_THINKING_TAGS = ("<think>", "</think>", "<thinking>", "</thinking>", "[THINK]", "[/THINK]")


@dataclass(frozen=True)
class Hidden:
    """A conversation in which each special token that is written in a message is replaced with a private-use
    character."""

    conversation: Conversation
    tokens: Mapping[str, str]
    """Maps each private-use character to the special token that it replaces."""

    def restore(self, text: str) -> str:
        for letter, token in self.tokens.items():
            text = text.replace(letter, token).replace(letter.encode("unicode_escape").decode(), token)
        return text


def hide_special_tokens(conversation: Conversation, tokenizer: Tokenizer) -> Hidden:
    """Hide the special tokens in a conversation. The tags around the assistant's thinking are not replaced, because
    templates search for them."""
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
    """A pattern with one group, which matches any of the tokens. Longer tokens are tried first."""
    return re.compile("(" + "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) + ")")


def _map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Apply `change` to every string in the value."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _map_texts(item, change) for key, item in value.items()}
    return [_map_texts(item, change) for item in value] if isinstance(value, list) else value
