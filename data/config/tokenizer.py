"""What a YAML says about the tokenizer.

Checks raise ValueError with the key relative to the class; the reader of the YAML puts the path before it.
"""

from dataclasses import dataclass, field
from datetime import date
from typing import Literal

from data.base.paths import check_path


@dataclass(frozen=True, kw_only=True)
class TokenizerKwargs:
    model_name: str | None = None
    """tiktoken: a model whose encoding is taken, such as gpt-4."""
    encoding_name: str | None = None
    """tiktoken: an encoding, such as cl100k_base (downloaded by tiktoken on first use)."""
    vocab_file: str | None = None
    """tiktoken: a local vocabulary, one base64 token and its rank a line."""
    use_default_system_prompt: bool = False
    """tiktoken: a conversation without a system turn gets the default one."""
    model_max_length: int | None = None
    """Accepted when it equals max_seq_len, which is what the exported tokenizer gets."""

    def __post_init__(self) -> None:
        check_path("vocab_file", self.vocab_file)


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    name: str
    """`tiktoken`, or a Hugging Face tokenizer folder or name."""
    kwargs: TokenizerKwargs = field(default_factory=TokenizerKwargs)
    chat_template_drops: list[Literal["thinking", "system", "tools", "tool_calls", "loss_weight"]] = field(
        default_factory=list
    )
    """What of conversations the chat template may leave out. Anything else that it does not write is an error.
    thinking: `<think>...</think>` in an answer, `reasoning_content` and `thinking` beside it."""
    chat_date: str | None = None
    """The date that a chat template writes where it asks for today's, such as '2026-11-29'."""

    def __post_init__(self) -> None:
        check_path("name", self.name)
        sources = {key: getattr(self.kwargs, key) for key in ("model_name", "encoding_name", "vocab_file")}
        given = [key for key, value in sources.items() if value is not None]
        if self.name == "tiktoken" and len(given) != 1:
            found = " and ".join(given) or "none of them is given"
            raise ValueError(f"kwargs needs exactly one of {', '.join(sources)} for tiktoken, but {found}")
        if self.name != "tiktoken" and given:
            raise ValueError(f"kwargs.{given[0]} belongs to `name: tiktoken`, but name is {self.name!r}")
        if self.chat_date is None:
            return
        if self.name == "tiktoken":
            raise ValueError(f"chat_date is {self.chat_date!r}, but the chat template of tiktoken has no date")
        try:
            date.fromisoformat(self.chat_date)
        except ValueError:
            raise ValueError(f"chat_date is {self.chat_date!r}, but a date is written '2026-11-29'") from None
