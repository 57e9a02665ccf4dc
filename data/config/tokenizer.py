"""What a YAML says about the tokenizer."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

from data.config.sections import Defect, Section
from data.config.values import Label, PathText


@dataclass(frozen=True, kw_only=True)
class TokenizerKwargs(Section):
    """What the tokenizer is made from."""

    model_name: Label | None = None
    """tiktoken: a model whose encoding is taken, such as gpt-4."""
    encoding_name: Label | None = None
    """tiktoken: an encoding, such as cl100k_base (downloaded by tiktoken on first use)."""
    vocab_file: PathText | None = None
    """tiktoken: a local vocabulary, one base64 token and its rank a line."""
    use_default_system_prompt: bool = False
    """tiktoken: a conversation without a system turn gets the default one."""
    model_max_length: int | None = None
    """Accepted when it equals max_seq_len, which is what the exported tokenizer gets."""


def _sources(config: "TokenizerConfig") -> Iterator[Defect]:
    sources = {key: getattr(config.kwargs, key) for key in ("model_name", "encoding_name", "vocab_file")}
    given = [key for key, value in sources.items() if value is not None]
    if config.name == "tiktoken" and len(given) != 1:
        found = " and ".join(given) or "none of them is given"
        yield Defect("kwargs", f"needs exactly one of {', '.join(sources)} for tiktoken, but {found}")
    if config.name != "tiktoken" and given:
        yield Defect(f"kwargs.{given[0]}", f"belongs to `name: tiktoken`, but name is {config.name!r}")


def _date(config: "TokenizerConfig") -> Iterator[Defect]:
    if config.chat_date is None:
        return
    try:
        date.fromisoformat(config.chat_date)
    except ValueError:
        yield Defect("chat_date", f"is {config.chat_date!r}, but a date is written '2026-11-29'")
    if config.name == "tiktoken":
        yield Defect("chat_date", f"is {config.chat_date!r}, but the chat template of tiktoken has no date")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(Section):
    """The tokenizer."""

    RULES = (_sources, _date)

    name: PathText
    """`tiktoken`, or a Hugging Face tokenizer folder or name."""
    kwargs: TokenizerKwargs = field(default_factory=TokenizerKwargs)
    chat_template_drops: list[Literal["thinking", "system", "tools", "tool_calls", "loss_weight"]] = field(
        default_factory=list
    )
    """What of conversations the chat template may leave out. Anything else that it does not write is an error.
    thinking: `<think>...</think>` in an answer, `reasoning_content` and `thinking` beside it."""
    chat_date: str | None = None
    """The date that a chat template writes where it asks for today's, such as '2026-11-29'."""
