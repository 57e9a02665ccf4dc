"""Tokenizers of the transformers library. Chat templates are rendered in the same way with all versions of
transformers."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from data.base.errors import ConfigError, DataError, RowError, TemplateError, setting
from data.tokenization.files import save_for_transformers_4, write_generation_config
from data.tokenization.templates.sandbox import render_chat
from data.tokenization.tokenizer import fingerprint_of

MOST_BYTES = 2 << 20
"""Maximum size in bytes of a text for the tokenizers library. The library needs up to 270 bytes of memory per byte of
text, and there is no position at which a text can be split safely for all vocabularies."""


class HFTokenizer:
    """A tokenizer of the transformers library. All tokenizers that need no custom code are supported."""

    def __init__(
        self, name: str, tokenizer: Any, *, chat_template_drops: Sequence[str] = (), chat_date: str | None = None
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                f"is {name!r}, but that tokenizer has no eos_token, so a model could not learn to stop: "
                "set eos_token in its tokenizer_config.json",
                key="tokenizer.name",
            )
        self.name = name
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1
        self.eos_token_id: int = tokenizer.eos_token_id
        self.bos_token_id: int = _first_id(tokenizer.bos_token_id, self.eos_token_id)
        self.pad_token_id: int = _first_id(tokenizer.pad_token_id, self.eos_token_id)
        self.chat_template: str | None = tokenizer.chat_template
        self.stop_token_ids = [self.eos_token_id]
        try:
            end_of_turn = _end_of_turn(tokenizer)
        except TemplateError as error:
            raise ConfigError(f"is {name!r}, but {error}", key="tokenizer.name") from None
        if end_of_turn not in (None, self.eos_token_id):
            self.stop_token_ids.append(end_of_turn)
        self.special_tokens: Mapping[str, int] = _special_tokens(tokenizer)
        self.chat_template_drops = frozenset(chat_template_drops)
        self._date = None if chat_date is None else datetime.fromisoformat(chat_date)
        contents = ["hf", _contents(tokenizer), self.stop_token_ids, self.chat_template]
        self.fingerprint = fingerprint_of(contents, self.chat_template_drops, chat_date)
        self._tokenizer = tokenizer

    def encode(self, text: str) -> np.ndarray:
        return self._encode(text, split_special_tokens=True)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: list[dict[str, Any]] | None = None,
    ) -> str:
        if self.chat_template is None:
            raise ConfigError(
                f"is {self.name!r}, but that tokenizer has no chat template, which messages require: use "
                "a tokenizer with a chat template, or set chat_template in its tokenizer_config.json",
                key="tokenizer.name",
            )
        try:
            return render_chat(
                self._tokenizer,
                messages,
                subject=f"the chat template of tokenizer {self.name}",
                strftime=self._strftime,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateError:
            raise
        except Exception as error:  # any error in the template, or its own raise_exception()
            raise DataError(str(error) or type(error).__name__) from error

    def _strftime(self, format: str) -> str:
        if self._date is None:
            raise TemplateError(
                f"the chat template of tokenizer {self.name} writes today's date ({format}), so the rows would depend "
                "on the day on which they are prepared: set the date, as in "
                f"{setting('tokenizer.chat_date', '2026-11-29')}"
            )
        return self._date.strftime(format)

    def encode_rendered(self, text: str) -> np.ndarray:
        return self._encode(text, split_special_tokens=False)

    def _encode(self, text: str, *, split_special_tokens: bool) -> np.ndarray:
        if len(text) > MOST_BYTES // 4:  # a character has at most 4 bytes
            _check_size(text)
        ids = self._tokenizer.encode(
            text, add_special_tokens=False, split_special_tokens=split_special_tokens, verbose=False
        )
        return np.array(ids, dtype=np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode(np.asarray(ids).tolist(), clean_up_tokenization_spaces=False)

    def save_pretrained(self, folder: Path, max_seq_len: int) -> None:
        before = self._tokenizer.model_max_length
        self._tokenizer.model_max_length = max_seq_len
        save_for_transformers_4(self._tokenizer, folder)
        self._tokenizer.model_max_length = before
        write_generation_config(folder, bos=self.bos_token_id, stop=self.stop_token_ids, pad=self.pad_token_id)


def _check_size(text: str) -> None:
    n_bytes = len(text.encode())
    if n_bytes > MOST_BYTES:
        raise RowError(
            "too large for its tokenizer",
            f"has a text of {n_bytes:,} bytes, but the maximum for a Hugging Face tokenizer is {MOST_BYTES:,}, because "
            "tokenization requires up to 270 times as much memory: split the row, remove the row, or use tiktoken, "
            "which accepts texts of any size",
        )


def _first_id(*ids: int | None) -> int:
    return next(token_id for token_id in ids if token_id is not None)


def _end_of_turn(tokenizer: Any) -> int | None:
    """The special token that the template writes after an assistant's message; None if the template writes no special
    token there.

    Raises TemplateError if the template exceeds a limit.
    """
    if tokenizer.chat_template is None:
        return None
    words = "the assistant's words"
    messages = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": words}]
    try:
        text = render_chat(tokenizer, messages, subject="its chat template", strftime=datetime.now().strftime)
    except TemplateError:
        raise
    except Exception:  # if the template rejects the two messages, only eos ends generation
        return None
    rest = text.rpartition(words)[2].lstrip()
    found = [token for token in tokenizer.all_special_tokens if rest.startswith(token)]
    return tokenizer.convert_tokens_to_ids(max(found, key=len)) if found else None


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    """The special tokens that are encoded as text if split_special_tokens is set, in the order of their ids."""
    added = {token.content: token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    return dict(sorted((named | added).items(), key=lambda item: item[1]))


def _contents(tokenizer: Any) -> object:
    if tokenizer.is_fast:
        return tokenizer.backend_tokenizer.to_str()
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        files = sorted(Path(file) for file in tokenizer.save_vocabulary(folder) if file is not None)
        contents = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    # Settings that are paths or file names are left out. Other settings, such as do_lower_case, are included.
    settings = {key: repr(value) for key, value in tokenizer.init_kwargs.items() if not re.search("file|path", key)}
    return [type(tokenizer).__name__, contents, settings, sorted(tokenizer.get_added_vocab().items())]
