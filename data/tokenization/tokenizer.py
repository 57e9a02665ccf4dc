"""The interface of all tokenizers: text <-> token ids."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Tokenizer(Protocol):
    """The interface of all tokenizers. Instances can be pickled, so that they can be sent to the workers of a
    loader."""

    name: str
    vocab_size: int
    """The largest id plus one, including special tokens."""
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    stop_token_ids: list[int]
    """Ids that end generation: eos, and the chat template's end of turn."""
    chat_template: str | None
    chat_template_drops: frozenset[str]
    """The parts of a conversation that the template may leave out: see TokenizerConfig."""
    special_tokens: Mapping[str, int]
    """The tokens that are special in rendered conversations, and their ids."""
    fingerprint: str
    """Hash of everything that determines the ids and the rendered text."""

    def encode(self, text: str) -> np.ndarray:
        """The ids as int32. No tokens are added, and special tokens written in the text are encoded as text.

        Raises RowError for a text that would need too much memory.
        """
        ...

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: list[dict[str, Any]] | None = None,
    ) -> str:
        """The conversation as rendered by the chat template. With `add_generation_prompt`, it includes the text up to
        the start of an answer.

        Raises ConfigError if there is no template, TemplateError if the template needs the date and no date is
        configured, and DataError with the template's message if the template rejects the conversation.
        """
        ...

    def encode_rendered(self, text: str) -> np.ndarray:
        """The ids of rendered text as int32. Special tokens in the text are encoded as special tokens. Raises the same
        errors as `encode`."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of the ids. Invalid UTF-8 is replaced with U+FFFD. Ids that are not in the tokenizer's
        vocabulary, which a model with a larger vocabulary may generate, are decoded to an empty string."""
        ...

    def save_pretrained(self, folder: Path, max_seq_len: int) -> None:
        """Write the files of a Hugging Face tokenizer and generation_config.json."""
        ...


def fingerprint_of(contents: list[Any], drops: frozenset[str], date: str | None = None) -> str:
    """Hash of a tokenizer's contents, and of those settings of its chat template that are not null."""
    settings = [sorted(drops), date] if drops or date is not None else []
    return hashlib.sha256(json.dumps([*contents, *settings]).encode()).hexdigest()[:32]
