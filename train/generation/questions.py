"""Reads questions (prompts and conversations) from a command line or a file, and encodes them."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.base.console import notice
from data.base.errors import ConfigError, DataError, os_errors_named, setting
from data.base.problems import Problem, Reading
from data.examples.examples import read_examples
from data.examples.forms import FORMS, Conversation, Example, PromptResponse
from data.secrets.redaction import redacted
from data.sources.formats.lines import parse_line
from data.tokenization.chat import encode_question
from data.tokenization.tokenizer import Tokenizer
from train.config.sampling import Sampling, room

if TYPE_CHECKING:
    from train.generation.open_model import Opened

Question = PromptResponse | Conversation
"""A prompt with its expected answer. In a conversation, the last message is the expected answer, and all other messages
form the prompt. The answer is empty if it is unknown."""


def as_question(prompt: str, *, chat: bool = False, system_prompt: str | None = None) -> Question:
    """Convert a prompt to a question without an answer. If chat is set, the prompt becomes a user message, after the
    system prompt if there is one."""
    if not chat:
        return PromptResponse(prompt, "")
    before = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return Conversation([*before, {"role": "user", "content": prompt}, {"role": "assistant", "content": ""}])


def question_text(question: Question) -> str:
    """The text that is displayed for a question."""
    return question.prompt if isinstance(question, PromptResponse) else question.messages[-2]["content"]


def expected_answer(question: Question) -> str:
    return question.response if isinstance(question, PromptResponse) else question.messages[-1]["content"]


def read_questions(
    file: Path, *, with_answers: bool = False, preprocess: Callable[[Any], Any] | None = None
) -> list[Question]:
    """Read prompts from a .jsonl file with `{prompt}` or `{messages}`, or from a text file with one prompt per line.

    with_answers: the file must be JSONL. Each row must have the form `{prompt, response}`, or contain messages that end
    with a message of the assistant, or be converted to one of these two forms by preprocess. Rows for which preprocess
    returns None are skipped, and their number is logged.

    Raises ConfigError if the file cannot be read or has no prompts, and DataError with the line number of each invalid
    row.
    """
    with os_errors_named(file):
        lines = file.read_bytes().splitlines()
    rows = ((f"{file}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip())
    reading = Reading()
    if with_answers or file.suffix == ".jsonl":
        parsed = ((place, parse_line(line)) for place, line in rows)
        placed = read_examples(parsed if with_answers else _with_any_answer(parsed), preprocess, reading)
        examples = (example for _, example in placed)
    else:
        examples = (PromptResponse(_text(line, place), "") for place, line in rows)
    questions = [_only_questions(example, file) for example in examples]
    reading.raise_if_any()
    if reading.n_dropped:
        notice(f"{file}: {setting('preprocessing_fn')} skipped {reading.n_dropped:,} of the rows in this file")
    if not questions:
        raise ConfigError(f'{file} has no prompts: write one per line, or JSON lines such as {{"prompt": "..."}}')
    return questions


def _text(line: bytes, place: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not UTF-8 text ({error.reason})") from None


def _with_any_answer(rows: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Add a placeholder answer to rows without an answer, so that the checks for training examples can be used."""
    for place, row in rows:
        if isinstance(row, dict) and "prompt" in row:
            row = {"prompt": row["prompt"], "response": "any"}
        elif isinstance(row, dict) and isinstance(row.get("messages"), list):
            last = row["messages"][-1] if row["messages"] else None
            if not (isinstance(last, dict) and last.get("role") == "assistant"):
                row = {**row, "messages": [*row["messages"], {"role": "assistant", "content": "any"}]}
        elif isinstance(row, dict) and not any(names[0] in row for names in FORMS.values()):
            columns = ", ".join(row) or "no columns"
            row = Problem(
                "no prompt",
                f"the row has neither prompt nor messages, but {columns}: rename the question's column to prompt",
            )
        yield place, row


def _only_questions(example: Example, file: Path) -> Question:
    if isinstance(example, PromptResponse | Conversation):
        return example
    raise DataError(f"{file} has {example.form}, but a question must be a prompt or messages")


def encode_one(question: Question, tokenizer: Tokenizer) -> list[int]:
    """Encode a question. Raises DataError for text that is not valid Unicode, which is possible if the text was entered
    in a terminal, and for invalid conversations."""
    texts = [question.prompt] if isinstance(question, PromptResponse) else [m["content"] for m in question.messages]
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{redacted(text)[:40]!r} is not UTF-8 text (character {error.start + 1})") from None
    if isinstance(question, PromptResponse):
        return tokenizer.encode(question.prompt).tolist()
    return encode_question(replace(question, messages=question.messages[:-1]), tokenizer).tolist()


def encode(questions: Sequence[Question], opened: "Opened", sampling: Sampling) -> list[list[int]]:
    """Encode questions as in training. Raises DataError with the number of a prompt if the prompt is empty, or so long
    that no tokens can be generated within max_seq_len."""
    prompts = []
    for number, question in enumerate(questions, start=1):
        ids = encode_one(question, opened.tokenizer)
        name = f"prompt {number} ({redacted(question_text(question))[:40]!r})"
        if not ids:
            raise DataError(f"{name} is empty: a prompt must have at least one token")
        if room(len(ids), sampling, opened.decoder.max_seq_len) < 1:
            raise DataError(f"{name} has {len(ids)} tokens, but the model supports only {opened.decoder.max_seq_len}")
        prompts.append(ids)
    return prompts


def check_room(prompts: Sequence[Sequence[int]], max_new_tokens: int, max_seq_len: int) -> None:
    """Raise ConfigError if the length of the longest prompt plus max_new_tokens exceeds max_seq_len."""
    longest = max(map(len, prompts))
    if longest + max_new_tokens > max_seq_len:
        raise ConfigError(
            f"--max_new_tokens is {max_new_tokens} and the longest prompt has {longest} tokens, in total "
            f"{longest + max_new_tokens} tokens, but the model supports only {max_seq_len}: set --max_new_tokens to "
            f"at most {max_seq_len - longest}"
        )
