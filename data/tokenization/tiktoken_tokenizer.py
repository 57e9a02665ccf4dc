"""Tokenizers from tiktoken's encodings and vocabulary files, with DBRX's special tokens and ChatML template."""

from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np

from data.base.errors import ConfigError, DataError, setting
from data.config.tokenizer import TokenizerConfig
from data.tokenization import blocks
from data.tokenization.files import write_generation_config, write_tokenizer
from data.tokenization.quicktok_bpe import FastEncoder, cl100k_ranks, fast_encoder
from data.tokenization.tiktoken_bpe import CL100K_PATTERN, read_vocabulary, to_fast
from data.tokenization.tokenizer import fingerprint_of

if TYPE_CHECKING:
    import jinja2
    import tiktoken
    import tokenizers

END_OF_TEXT, PAD, IM_START, IM_END = "<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"
OURS = (END_OF_TEXT, PAD, IM_START, IM_END)

DEFAULT_SYSTEM_PROMPT = "You are a helpful assistant. Answer truthfully, and say so when you do not know."
"""The system prompt for conversations without a system message, if `use_default_system_prompt` is set."""

# The newline is written before a turn and not after it, so that the text of the first turns is the beginning of the
# text of the whole conversation.
CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ ('' if loop.first else '\\n') + '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)
DEFAULT_SYSTEM_TURN = (
    "{% if messages[0]['role'] != 'system' %}"
    f"{{{{ '<|im_start|>system\\n{DEFAULT_SYSTEM_PROMPT}<|im_end|>\\n' }}}}"
    "{% endif %}"
)


def build_tiktoken(config: TokenizerConfig) -> "TiktokenTokenizer":
    """Raises ConfigError if the vocabulary, encoding or model does not exist or cannot be read."""
    kwargs = config.kwargs
    if kwargs.vocab_file is not None:
        ranks, pattern, special = read_vocabulary(Path(kwargs.vocab_file), OURS), CL100K_PATTERN, {}
        name = kwargs.vocab_file
    else:
        key = "encoding_name" if kwargs.encoding_name is not None else "model_name"
        name = str(getattr(kwargs, key))
        encoding = _load_encoding(key, name)
        ranks, pattern, special = encoding._mergeable_ranks, encoding._pat_str, encoding._special_tokens
    with_system = kwargs.use_default_system_prompt
    tokenizer = TiktokenTokenizer(
        f"tiktoken:{name}",
        ranks,
        pattern,
        special,
        use_default_system_prompt=with_system,
        chat_template_drops=config.chat_template_drops,
    )
    _ = tokenizer.fast  # opened and checked once, and not in each worker that is forked from this process
    return tokenizer


def _load_encoding(key: str, name: str) -> "tiktoken.Encoding":
    import tiktoken

    try:
        encoding_name = tiktoken.encoding_name_for_model(name) if key == "model_name" else name
    except KeyError:
        raise ConfigError(
            f"is {name!r}, which is unknown to tiktoken: use gpt-4 as DBRX does, or set encoding_name",
            key="tokenizer.kwargs.model_name",
        ) from None
    known = tiktoken.list_encoding_names()
    if encoding_name not in known:
        raise ConfigError(
            f"is {name!r}, but tiktoken's encodings are {', '.join(sorted(known))}", key=f"tokenizer.kwargs.{key}"
        )
    ranks = cl100k_ranks() if encoding_name == "cl100k_base" else None
    if ranks is not None:
        return _cl100k_base(ranks)
    try:
        return tiktoken.get_encoding(encoding_name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"is {name!r}, but its vocabulary cannot be downloaded ({type(error).__name__}): "
            "for cl100k_base, install the extra fast-bpe; otherwise, set TIKTOKEN_CACHE_DIR to a folder that contains "
            "the vocabulary, or use a local "
            f"{setting('tokenizer.kwargs.vocab_file')}",
            key=f"tokenizer.kwargs.{key}",
        ) from error


def _cl100k_base(ranks: dict[bytes, int]) -> "tiktoken.Encoding":
    """The encoding as tiktoken defines it, without the download of its ranks."""
    import tiktoken
    from tiktoken_ext import openai_public

    names = {**vars(openai_public), "load_tiktoken_bpe": lambda *args, **kwargs: ranks}
    return tiktoken.Encoding(**FunctionType(openai_public.cl100k_base.__code__, names)())


class TiktokenTokenizer:
    """A tiktoken encoding with DBRX's special tokens and ChatML template.

    Special tokens that are not in the encoding get the ids after its last id. With cl100k_base these are <|pad|>
    100277, <|im_start|> 100278 and <|im_end|> 100279, in addition to its own <|endoftext|> 100257, the same as in DBRX.
    """

    def __init__(
        self,
        name: str,
        ranks: dict[bytes, int],
        pattern: str,
        special_tokens: dict[str, int],
        *,
        use_default_system_prompt: bool = False,
        chat_template_drops: Sequence[str] = (),
    ) -> None:
        import tiktoken

        special = dict(special_tokens)
        next_id = max(*ranks.values(), *special.values(), -1) + 1
        for token in OURS:
            if token not in special:
                special[token] = next_id
                next_id += 1
        self.name = name
        self.vocab_size = next_id
        self.bos_token_id = self.eos_token_id = special[END_OF_TEXT]
        self.pad_token_id = special[PAD]
        self.stop_token_ids = [special[END_OF_TEXT], special[IM_END]]
        self._template = (DEFAULT_SYSTEM_TURN if use_default_system_prompt else "") + CHATML_TEMPLATE
        self.chat_template: str | None = self._template
        self.chat_template_drops = frozenset(chat_template_drops)
        self.special_tokens: Mapping[str, int] = special
        by_rank = sorted((rank, token.hex()) for token, rank in ranks.items())
        contents = ["tiktoken", by_rank, pattern, sorted(special.items()), self._template]
        self.fingerprint = fingerprint_of(contents, self.chat_template_drops)
        # According to tiktoken's documentation, encodings with different special tokens must have different names.
        self._encoding = tiktoken.Encoding(
            f"dropless-{self.fingerprint}", pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
        )

    @cached_property
    def fast(self) -> FastEncoder | None:
        """A faster encoder that returns the same ids, or None if this machine has no such encoder."""
        return fast_encoder(self._encoding)

    def __getstate__(self) -> dict[str, Any]:
        # Another process may have other packages, so the faster encoder is opened and checked there again.
        return {name: value for name, value in vars(self).items() if name != "fast"}

    def encode(self, text: str) -> np.ndarray:
        if len(text) > blocks.BLOCK:
            return blocks.encode_blocks(self._encoding, text, special=False, encode=self._encode_text)
        return self._encode_text(text)

    def _encode_text(self, text: str) -> np.ndarray:
        if self.fast is not None:
            return self.fast.encode(text)
        return _int32(self._encoding.encode_to_numpy(text, disallowed_special=()))

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: list[dict[str, Any]] | None = None,
    ) -> str:
        try:
            return _compile(self._template).render(messages=messages, add_generation_prompt=add_generation_prompt)
        except TypeError as error:  # the content of a message is not a string, but the template concatenates strings
            raise DataError(str(error)) from error

    def encode_rendered(self, text: str) -> np.ndarray:
        if len(text) > blocks.BLOCK:
            return blocks.encode_blocks(self._encoding, text, special=True, encode=self._encode_text)
        if self.fast is not None:
            return self.fast.encode_with_special(text)
        return _int32(self._encoding.encode_to_numpy(text, allowed_special="all"))

    @cached_property
    def _fast(self) -> "tokenizers.Tokenizer":
        """A tokenizer of the tokenizers library with the same vocabulary, which is used in exports."""
        encoding = self._encoding
        return to_fast(encoding._mergeable_ranks, encoding._pat_str, encoding._special_tokens)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._encoding.decode([token for token in np.asarray(ids).tolist() if token in self._known])

    @cached_property
    def _known(self) -> frozenset[int]:
        encoding = self._encoding
        return frozenset((*encoding._mergeable_ranks.values(), *encoding._special_tokens.values()))

    def save_pretrained(self, folder: Path, max_seq_len: int) -> None:
        write_tokenizer(
            folder,
            self._fast,
            bos_eos_unk=END_OF_TEXT,
            pad=PAD,
            additional=[IM_START, IM_END],
            chat_template=self._template,
            max_seq_len=max_seq_len,
        )
        write_generation_config(folder, bos=self.bos_token_id, stop=self.stop_token_ids, pad=self.pad_token_id)


@lru_cache
def _compile(template: str) -> "jinja2.Template":
    """Compile the template in the same way as transformers, so that an exported template renders the same text."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)


def _int32(ids: np.ndarray) -> np.ndarray:
    """Return tiktoken's uint32 ids as int32, without a copy."""
    return ids.view(np.int32)
