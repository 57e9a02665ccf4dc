"""The four forms that an example has, and their columns."""

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
    """Messages as `read_messages` returns them; the last is the assistant's."""

    form: ClassVar[str] = "messages"
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    """Functions that the assistant may call, as JSON schemas."""


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
    PromptResponse.form: PAIR,
    Conversation.form: ("messages",),
    Text.form: ("text",),
    TokenTurns.form: ("turns",),
}
"""The columns of each form."""
TEXT_FORMS = (*(("prompt", name) for name in RESPONSE_NAMES), *(FORMS[form] for form in list(FORMS)[1:]))
"""The columns that an MDS sample has to have, one of these, to be an example; rows are prepared of it."""
