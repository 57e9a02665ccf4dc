"""Text <-> token ids: what the rest of the code knows of a tokenizer."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Tokenizer(Protocol):
    """What the rest of the code knows of a tokenizer. Instances can be pickled for loader workers."""

    name: str
    vocab_size: int
    """The largest id, special ones included, plus one."""
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    stop_token_ids: list[int]
    """Ids at which generation ends: eos, and the chat template's end of a turn."""
    chat_template: str | None
    chat_template_drops: frozenset[str]
    """What of a conversation the template may leave out: see TokenizerConfig."""
    special_tokens: Mapping[str, int]
    """Those that are written out in rendered conversations, and their ids."""
    fingerprint: str
    """Hash of everything that decides ids and the template's text."""

    def encode(self, text: str) -> np.ndarray:
        """int32. Adds nothing; special tokens written in the text stay text.

        Raises RowError for a text that would take too much memory.
        """
        ...

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: list[dict[str, Any]] | None = None,
    ) -> str:
        """The conversation as the chat template writes it; with the generation prompt, up to where an answer begins.

        Raises ConfigError when there is no template, TemplateError when it asks for the date and none is configured,
        DataError with what the template says against the conversation.
        """
        ...

    def encode_rendered(self, text: str) -> np.ndarray:
        """int32. Of what render wrote: special tokens in it are special. Raises what encode does."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Bytes that are no character become U+FFFD; ids that stand for nothing, as some of a model's may, nothing."""
        ...

    def save_pretrained(self, folder: Path, max_seq_len: int) -> None:
        """Writes the files of a Hugging Face tokenizer and generation_config.json."""
        ...


def fingerprint_of(contents: list[Any], drops: frozenset[str], date: str | None = None) -> str:
    """Hash of a tokenizer's contents, and of what is configured of its chat template, where anything is."""
    settings = [sorted(drops), date] if drops or date is not None else []
    return hashlib.sha256(json.dumps([*contents, *settings]).encode()).hexdigest()[:32]
