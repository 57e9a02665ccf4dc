"""The four forms of an example, and their columns."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

RESPONSE_NAMES = ("response", "completion")
PAIR = ("prompt", *RESPONSE_NAMES)


@dataclass(frozen=True)
class PromptResponse:
    form: ClassVar[str] = "prompt and response"
    prompt: str
    response: str


@dataclass(frozen=True)
class Conversation:
    """Messages as returned by `read_messages`. The last message is from the assistant."""

    form: ClassVar[str] = "messages"
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    """Functions that the assistant can call, as JSON schemas."""


@dataclass(frozen=True)
class Text:
    form: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, eq=False)
class TokenTurns:
    """Token ids (int64) of the prompt and the response of each turn. Their range is checked later, because it depends
    on the tokenizer."""

    form: ClassVar[str] = "turns"
    turns: list[tuple[np.ndarray, np.ndarray]]


Example = PromptResponse | Conversation | Text | TokenTurns

FORMS: dict[str, tuple[str, ...]] = {
    PromptResponse.form: PAIR,
    Conversation.form: ("messages",),
    Text.form: ("text",),
    TokenTurns.form: ("turns",),
}
"""The columns of each form."""
TEXT_FORMS = (*(("prompt", name) for name in RESPONSE_NAMES), *(FORMS[form] for form in list(FORMS)[1:]))
"""If the samples of an MDS folder have one of these sets of columns, they are examples, which must be tokenized and
packed into rows."""
