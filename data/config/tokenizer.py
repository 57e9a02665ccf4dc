"""Configuration of the tokenizer."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

from data.config.sections import Defect, Section
from data.config.values import Label, PathText


@dataclass(frozen=True, kw_only=True)
class TokenizerKwargs(Section):
    """Settings that define the tokenizer."""

    model_name: Label | None = None
    """For tiktoken: the name of the model whose encoding is used, such as `gpt-4`."""
    encoding_name: Label | None = None
    """For tiktoken: the encoding, such as `cl100k_base`. tiktoken downloads it on first use; `cl100k_base` is not
    downloaded if the extra `fast-bpe` is installed."""
    vocab_file: PathText | None = None
    """For tiktoken: a local vocabulary file. Each line contains a token in base64 and the rank of this token."""
    use_default_system_prompt: bool = False
    """For tiktoken: add the default system prompt to conversations without a system prompt."""
    model_max_length: int | None = None
    """Must equal `max_seq_len` if it is set. The exported tokenizer always contains the value of `max_seq_len`."""


def _sources(config: "TokenizerConfig") -> Iterator[Defect]:
    sources = {key: getattr(config.kwargs, key) for key in ("model_name", "encoding_name", "vocab_file")}
    given = [key for key, value in sources.items() if value is not None]
    if config.name == "tiktoken" and len(given) != 1:
        found = f"{' and '.join(given)} are set" if given else "none of them is set"
        yield Defect("kwargs", f"requires exactly one of {', '.join(sources)} for tiktoken, but {found}")
    if config.name != "tiktoken" and given:
        yield Defect(f"kwargs.{given[0]}", f"requires `name: tiktoken`, but name is {config.name!r}")


def _date(config: "TokenizerConfig") -> Iterator[Defect]:
    if config.chat_date is None:
        return
    try:
        date.fromisoformat(config.chat_date)
    except ValueError:
        yield Defect("chat_date", f"is {config.chat_date!r}, but a date must be written like '2026-11-29'")
    if config.name == "tiktoken":
        yield Defect(
            "chat_date", f"is {config.chat_date!r}, but the chat template of tiktoken has no date: remove chat_date"
        )


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig(Section):
    """The tokenizer."""

    RULES = (_sources, _date)

    name: PathText
    """`tiktoken`, or the path or hub name of a Hugging Face tokenizer."""
    kwargs: TokenizerKwargs = field(default_factory=TokenizerKwargs)
    chat_template_drops: list[Literal["thinking", "system", "tools", "tool_calls", "loss_weight"]] = field(
        default_factory=list
    )
    """Parts of conversations that the chat template may omit. It is an error if the template omits anything else. The
    name `thinking` covers `<think>...</think>` in an answer, and the keys `reasoning_content` and `thinking`."""
    chat_date: str | None = None
    """The date for chat templates that insert today's date, such as `'2026-11-29'`."""
