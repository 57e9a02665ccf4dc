"""From an example to token ids and which of them are trained on.

A trained response reaches from the end of the generation prompt up to and including the token that ends the turn.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data.config import DatasetConfig
from data.errors import DataError, RowError
from data.examples import Conversation, Example, Problem, PromptResponse, Text, TokenTurns, describe
from data.tokenizer import Tokenizer

NO_ROOM = "the prompt leaves no room for a response"
TOO_LONG = "longer than max_seq_len"

PRIVATE = range(0xF0000, 0xFFFFE)
"""Characters of Unicode's private plane: they stand for what must not be taken for a special token."""


@dataclass(frozen=True, eq=False)
class Document:
    """One example as tokens."""

    tokens: np.ndarray
    """int32; unsigned and as narrow as the vocabulary for a text."""
    loss_mask: np.ndarray
    """uint8, as long as tokens: is the token trained on?"""
    is_text: bool = False
    """A document to pretrain on: it may be cut anywhere."""

    @property
    def trained_tokens(self) -> int:
        """Tokens that some position predicts: a document's first is nobody's label."""
        return int(self.loss_mask[1:].sum())


@dataclass(frozen=True)
class Part:
    """A stretch of a rendered conversation. Parts are encoded apart, so that the mask's borders fall between tokens."""

    text: str
    kind: str
    """prompt, response, or rest: what the template writes after the last turn's end."""


def tokenize(example: Example, tokenizer: Tokenizer, config: DatasetConfig) -> Document | Problem:
    """The example's tokens with what `target_prompts` and `target_responses` choose of them.

    A prompt and its response are joined as they are, and the tokenizer's end token follows; a conversation is what the
    chat template makes of it; a text gets the end token and is trained on as a whole. A Problem is what only shows in
    the tokens, or a text too large to be encoded.

    Raises DataError, for that is no matter of one row, when a conversation meets a tokenizer without a template, or
    one whose template does not end an answer with a special token.
    """
    try:
        return _tokenize(example, tokenizer, config)
    except RowError as error:
        return Problem(error.kind, str(error))


def _tokenize(example: Example, tokenizer: Tokenizer, config: DatasetConfig) -> Document | Problem:
    end = np.array([tokenizer.eos_token_id], dtype=np.int32)
    if isinstance(example, Text):
        # A text may be the largest thing in memory: it gets its end in no more bytes than its ids need.
        smallest = np.min_scalar_type(tokenizer.vocab_size - 1)
        tokens = np.concatenate([tokenizer.encode(example.text), end], dtype=smallest, casting="unsafe")
        return Document(tokens, np.ones(len(tokens), dtype=np.uint8), is_text=True)
    if isinstance(example, PromptResponse):
        response = np.concatenate([tokenizer.encode(example.response), end])
        return _document([("prompt", tokenizer.encode(example.prompt)), ("response", response)], config)
    if isinstance(example, TokenTurns):
        wrong = _not_in_vocabulary(example, tokenizer)
        return wrong or _document(_token_parts(example, tokenizer), config)
    return _tokenize_conversation(example, tokenizer, config)


def encode_question(messages: list[dict[str, str]], tokenizer: Tokenizer) -> np.ndarray:
    """int32: what the assistant's next answer follows, as training writes it. Special tokens in the messages stay text.

    Raises ConfigError when the tokenizer has no chat template, DataError with what the template says against them.
    """
    messages, hidden = _hide_special_tokens(messages, tokenizer)
    try:
        text = tokenizer.render(messages, add_generation_prompt=True)
    except DataError as error:
        raise DataError(f"the chat template refuses the conversation: {_put_back(str(error), hidden)}") from None
    return _encode(text, tokenizer, hidden)


def fit(document: Document, config: DatasetConfig) -> Document | str | Problem:
    """The document in at most max_seq_len tokens; the reason for which it is dropped; or, where that is an error, it.

    A text comes back whole: packing cuts it, and it goes on in the next row.
    """
    length, longest = len(document.tokens), config.max_seq_len
    if document.is_text or length <= longest:
        return document
    if config.excess_length == "drop":
        return TOO_LONG
    if config.excess_length == "error":
        text = (
            f"has {length} tokens, but max_seq_len is {longest}: raise it, shorten the row, or write "
            "excess_length: truncate_response or drop"
        )
        return Problem(TOO_LONG, text)
    cut = Document(document.tokens[:longest].copy(), document.loss_mask[:longest].copy())
    return cut if cut.trained_tokens else NO_ROOM


def _document(parts: Iterable[tuple[str, np.ndarray]], config: DatasetConfig) -> Document:
    """Of `(kind, ids)` in their order."""
    parts = list(parts)
    last = max(index for index, (kind, _) in enumerate(parts) if kind == "response")
    masks = []
    for index, (kind, ids) in enumerate(parts):
        if kind == "prompt":
            trained = _is_target_prompt(len(ids), config.target_prompts)
        else:
            trained = kind == "response" and (index == last or config.target_responses == "all")
        masks.append(np.full(len(ids), trained, dtype=np.uint8))
    return Document(np.concatenate([ids for _, ids in parts], dtype=np.int32), np.concatenate(masks))


def _is_target_prompt(length: int, target_prompts: str) -> bool:
    if target_prompts in ("none", "all"):
        return target_prompts == "all"
    return length >= int(target_prompts.removeprefix("length>="))


def _not_in_vocabulary(example: TokenTurns, tokenizer: Tokenizer) -> Problem | None:
    for index, turn in enumerate(example.turns):
        for key, ids in zip(("input_ids", "labels"), turn, strict=True):
            outside = ids[(ids < 0) | (ids >= tokenizer.vocab_size)]
            if len(outside):
                text = (
                    f"turns[{index}].{key} has the id {outside[0]}, but the tokenizer's are 0 to "
                    f"{tokenizer.vocab_size - 1}: these ids are another tokenizer's"
                )
                return Problem("an id is not in the vocabulary", text)
    return None


def _token_parts(example: TokenTurns, tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    """As LLM Foundry's collator joins them: eos follows the last response, unless a token that ends it is there."""
    for index, (prompt, response) in enumerate(example.turns):
        is_last = index == len(example.turns) - 1
        ends = not is_last or response[-1] in tokenizer.stop_token_ids
        yield "prompt", prompt
        yield "response", response if ends else np.append(response, tokenizer.eos_token_id)


def _tokenize_conversation(example: Conversation, tokenizer: Tokenizer, config: DatasetConfig) -> Document | Problem:
    if tokenizer.chat_template is None:
        raise DataError(
            f"the rows have messages, but tokenizer {tokenizer.name} has no chat template: name one that has, or set "
            "chat_template in its tokenizer_config.json"
        )
    every_turn = config.target_prompts != "none" or config.target_responses == "all"
    messages, hidden = _hide_special_tokens(example.messages, tokenizer)
    try:
        parts = split_turns(messages, tokenizer, every_turn)
    except DataError as error:
        text = f"the chat template refuses the conversation: {_put_back(str(error), hidden)}"
        return Problem("the chat template fails", text)
    if isinstance(parts, Problem):
        return Problem(parts.kind, _put_back(parts.text, hidden))
    _check_ends_of_turns(parts, tokenizer)
    return _document([(part.kind, _encode(part.text, tokenizer, hidden)) for part in parts], config)


def split_turns(messages: list[dict[str, str]], tokenizer: Tokenizer, every_turn: bool) -> list[Part] | Problem:
    """The rendered conversation, cut where a response begins and ends; without every_turn only at the last one.

    The template is rendered up to each of these borders, and has to write the same up to there in the whole
    conversation: else a model would be asked otherwise than it was trained. Problem with the turn where it does not.
    """
    whole = tokenizer.render(messages, add_generation_prompt=False)
    parts: list[Part] = []
    start = 0
    for index, message in enumerate(messages):
        is_last = index == len(messages) - 1
        if message["role"] != "assistant" or not (every_turn or is_last):
            continue
        asked = tokenizer.render(messages[:index], add_generation_prompt=True)
        said = whole if is_last else tokenizer.render(messages[: index + 1], add_generation_prompt=False)
        for earlier, later in ((whole[:start], asked), (asked, said), (said, whole)):
            if not later.startswith(earlier):
                return _not_stable(index, earlier, later)
        end = len(asked) + len(said[len(asked) :].rstrip())
        parts += [Part(whole[start : len(asked)], "prompt"), Part(whole[len(asked) : end], "response")]
        start = end
    return [*parts, Part(whole[start:], "rest")] if start < len(whole) else parts


def _not_stable(index: int, earlier: str, later: str) -> Problem:
    same = next((at for at, (one, two) in enumerate(zip(earlier, later, strict=False)) if one != two), len(later))
    text = (
        f"messages[{index}] (assistant): with more turns the chat template writes what is before otherwise "
        f"({describe(earlier[same:])} became {describe(later[same:])}), so that a model would be asked otherwise than "
        "it was trained: use a tokenizer whose template leaves earlier turns as they are, or train on the last answers "
        "alone (target_prompts: none, target_responses: last)"
    )
    return Problem("the chat template is not prefix-stable", text)


def _check_ends_of_turns(parts: list[Part], tokenizer: Tokenizer) -> None:
    ends = tuple(tokenizer.special_tokens)
    for part in parts:
        if part.kind == "response" and not part.text.endswith(ends):
            raise DataError(
                f"the chat template of tokenizer {tokenizer.name} ends an answer with {part.text[-20:]!r}, which is no "
                f"special token (those are {', '.join(ends[:8])}), so that a model trained on it would never stop: "
                "take a tokenizer whose template ends each answer with one, or change its chat_template"
            )


def _hide_special_tokens(
    messages: list[dict[str, str]], tokenizer: Tokenizer
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The messages with a private character in the place of each special token that somebody wrote, and what it was."""
    pattern = _special_pattern(tuple(tokenizer.special_tokens))
    if not any(pattern.search(message["content"]) for message in messages):
        return messages, {}
    used = {letter for message in messages for letter in message["content"]}
    free = (letter for letter in map(chr, PRIVATE) if letter not in used)
    letters: dict[str, str] = {}

    def hide(match: re.Match[str]) -> str:
        return letters[match[0]] if match[0] in letters else letters.setdefault(match[0], next(free))

    hidden = [{**message, "content": pattern.sub(hide, message["content"])} for message in messages]
    return hidden, {letter: token for token, letter in letters.items()}


def _put_back(text: str, hidden: dict[str, str]) -> str:
    for letter, token in hidden.items():
        text = text.replace(letter, token)
    return text


def _encode(text: str, tokenizer: Tokenizer, hidden: dict[str, str]) -> np.ndarray:
    """The ids of rendered text: special tokens are the template's, and what is hidden is text.

    With something hidden, the text between special tokens is encoded piece by piece. A vocabulary that treats a text's
    beginning otherwise than its middle (SentencePiece's leading space) may then give another id there.
    """
    if not hidden:
        return tokenizer.encode_rendered(text)
    special = tokenizer.special_tokens
    parts: list[np.ndarray] = []
    for piece in _special_pattern(tuple(special)).split(text):
        if piece in special:
            parts.append(np.array([special[piece]]))
        elif piece:
            parts.append(tokenizer.encode(_put_back(piece, hidden)))
    return np.concatenate(parts)


@lru_cache
def _special_pattern(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Any of them, the longest first, in a group."""
    return re.compile("(" + "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)) + ")")
