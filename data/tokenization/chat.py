"""Convert an example to token ids, and determine which ids are trained on.

A trained response extends from the end of the generation prompt to the token that ends the turn, including this token.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from data.base.errors import DataError, RowError, TemplateError, setting
from data.base.problems import Problem
from data.config.dataset import DatasetConfig
from data.examples.forms import Conversation, Example, PromptResponse, Text, TokenTurns
from data.mds.row import DTYPES
from data.tokenization.templates.special_tokens import Hidden, hide_special_tokens, special_pattern
from data.tokenization.templates.turns import Part, render_question, split_turns
from data.tokenization.tokenizer import Tokenizer

NO_ROOM = "the prompt leaves no room for a response"
NOT_TRAINED = "no message is trained on"
TOO_LONG = "longer than max_seq_len"


@dataclass(frozen=True, eq=False)
class Document:
    """One example as tokens."""

    tokens: np.ndarray
    """The token ids, in int32 or, for a text, in the smallest unsigned type that can represent all ids."""
    loss_mask: np.ndarray
    """1 for tokens that are trained on, 0 for all other tokens. Has the same length as `tokens`."""
    is_text: bool = False
    """Whether this is a text for pretraining, which may be split anywhere."""

    @property
    def trained_tokens(self) -> int:
        """Number of trained tokens. The first token of a document is never a label, so it is not counted."""
        return int(self.loss_mask[1:].sum())


def tokenize(example: Example, tokenizer: Tokenizer, config: DatasetConfig) -> Document | Problem:
    """The example's tokens, with a loss mask according to `target_prompts` and `target_responses`.

    A prompt and its response are concatenated unchanged, followed by the tokenizer's end token. A conversation is
    rendered by the chat template. A text is followed by the end token, and all of its tokens are trained on. Returns a
    Problem for defects that can only be found in the tokens, and for a text that is too large to be encoded.

    Raises TemplateError for a conversation if the tokenizer has no chat template, if its template does not end an
    answer with a special token, or if the template leaves out something that `tokenizer.chat_template_drops` does not
    list.
    """
    try:
        return _tokenize(example, tokenizer, config)
    except RowError as error:
        return Problem(error.kind, str(error))


def _tokenize(example: Example, tokenizer: Tokenizer, config: DatasetConfig) -> Document | Problem:
    end = np.array([tokenizer.eos_token_id], dtype=np.int32)
    if isinstance(example, Text):
        # A text may be the largest object in memory, so its ids are converted to the smallest type when eos is added.
        smallest = np.min_scalar_type(tokenizer.vocab_size - 1)
        tokens = np.concatenate([tokenizer.encode(example.text), end], dtype=smallest, casting="unsafe")
        return Document(tokens, np.ones(len(tokens), dtype=DTYPES["loss_mask"]), is_text=True)
    if isinstance(example, PromptResponse):
        response = np.concatenate([tokenizer.encode(example.response), end])
        return _document([("prompt", tokenizer.encode(example.prompt), None), ("response", response, None)], config)
    if isinstance(example, TokenTurns):
        defect = _not_in_vocabulary(example, tokenizer)
        return defect or _document(_token_parts(example, tokenizer), config)
    return _tokenize_conversation(example, tokenizer, config)


def encode_question(conversation: Conversation, tokenizer: Tokenizer) -> np.ndarray:
    """The ids (int32) of the text before the assistant's next answer. They are the same as in training. Special tokens
    written in the messages are encoded as text.

    Raises ConfigError if the tokenizer has no chat template, and DataError if the template rejects the conversation.
    """
    hidden = hide_special_tokens(conversation, tokenizer)
    try:
        text = render_question(hidden.conversation, tokenizer)
    except TemplateError:
        raise
    except DataError as error:
        raise DataError(f"the chat template rejects the conversation: {hidden.restore(str(error))}") from None
    return _encode(text, tokenizer, hidden)


def fit(document: Document, config: DatasetConfig) -> Document | str | Problem:
    """Return the document, truncated to max_seq_len tokens if it is longer. Returns the reason (a str) if the document
    is dropped, and a Problem if the config treats its length as an error.

    A text is returned unchanged, because packing splits texts that are too long and continues them in the next row.
    """
    length, longest = len(document.tokens), config.max_seq_len
    if not document.is_text and not document.trained_tokens:
        return NOT_TRAINED
    if document.is_text or length <= longest:
        return document
    if config.excess_length == "drop":
        return TOO_LONG
    if config.excess_length == "error":
        text = (
            f"has {length} tokens, but max_seq_len is {longest}: increase max_seq_len, shorten the row, or set "
            f"{setting('excess_length', 'truncate_response')} or drop"
        )
        return Problem(TOO_LONG, text)
    cut = Document(document.tokens[:longest].copy(), document.loss_mask[:longest].copy())
    return cut if cut.trained_tokens else NO_ROOM


def _document(parts: Iterable[tuple[str, np.ndarray, bool | None]], config: DatasetConfig) -> Document:
    """Join the `(kind, ids, train)` parts in order. If `train` is None, the config determines whether the part is
    trained on."""
    parts = list(parts)
    last = max(index for index, (kind, _, _) in enumerate(parts) if kind == "response")
    masks = []
    for index, (kind, ids, train) in enumerate(parts):
        if train is not None:
            trained = train
        elif kind == "prompt":
            trained = _is_target_prompt(len(ids), config.target_prompts)
        else:
            trained = kind == "response" and (index == last or config.target_responses == "all")
        masks.append(np.full(len(ids), trained, dtype=DTYPES["loss_mask"]))
    return Document(np.concatenate([ids for _, ids, _ in parts], dtype=np.int32), np.concatenate(masks))


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
                    f"turns[{index}].{key} has the id {outside[0]}, but the tokenizer's ids are 0 to "
                    f"{tokenizer.vocab_size - 1}: these ids belong to another tokenizer"
                )
                return Problem("an id is not in the vocabulary", text)
    return None


def _token_parts(example: TokenTurns, tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray, None]]:
    """The parts as LLM Foundry's collator makes them: the eos token follows the last response, unless this response
    ends with a stop token."""
    for index, (prompt, response) in enumerate(example.turns):
        is_last = index == len(example.turns) - 1
        ends = not is_last or response[-1] in tokenizer.stop_token_ids
        yield "prompt", prompt, None
        yield "response", response if ends else np.append(response, tokenizer.eos_token_id), None


def _tokenize_conversation(example: Conversation, tokenizer: Tokenizer, config: DatasetConfig) -> Document | Problem:
    if tokenizer.chat_template is None:
        raise TemplateError(
            f"the rows have messages, but tokenizer {tokenizer.name} has no chat template: use a tokenizer with "
            "a chat template, or set chat_template in its tokenizer_config.json"
        )
    hidden = hide_special_tokens(example, tokenizer)
    try:
        parts = split_turns(hidden, tokenizer, every_turn=_needs_every_turn(example, config))
    except TemplateError:
        raise
    except DataError as error:
        text = f"the chat template rejects the conversation: {hidden.restore(str(error))}"
        return Problem("the chat template fails", text)
    if isinstance(parts, Problem):
        return parts
    _check_ends_of_turns(parts, tokenizer)
    return _document([(part.kind, _encode(part.text, tokenizer, hidden), part.train) for part in parts], config)


def _needs_every_turn(example: Conversation, config: DatasetConfig) -> bool:
    earlier = any(message.get("train") for message in example.messages[:-1] if message["role"] == "assistant")
    return config.target_prompts != "none" or config.target_responses == "all" or earlier


def _check_ends_of_turns(parts: list[Part], tokenizer: Tokenizer) -> None:
    ends = tuple(tokenizer.special_tokens)
    for part in parts:
        if part.kind != "response":
            continue
        end = next((end for end in sorted(ends, key=len, reverse=True) if part.text.endswith(end)), None)
        if end is None:
            raise TemplateError(
                f"the chat template of tokenizer {tokenizer.name} ends an answer with {part.text[-20:]!r}, which is "
                f"not a special token (special tokens are {', '.join(ends[:8])}), so a trained model would never stop: "
                "use a tokenizer whose template ends each answer with a special token, or change its chat_template"
            )
        if not part.text.removesuffix(end).strip():
            raise TemplateError(
                f"the chat template of tokenizer {tokenizer.name} writes only the end of an answer ({end}), without "
                "the text of the answer: use a tokenizer whose template writes this text, or change its chat_template"
            )


def _encode(text: str, tokenizer: Tokenizer, hidden: Hidden) -> np.ndarray:
    """The ids of rendered text. Special tokens that the template wrote are encoded as special tokens. Hidden special
    tokens (see special_tokens.py) are encoded as text.

    If the text contains hidden special tokens, the text between special tokens is encoded piece by piece. Tokenizers
    that treat the beginning of a text specially (SentencePiece adds a leading space) may then produce different ids at
    the beginning of each piece.
    """
    if not hidden.tokens:
        return tokenizer.encode_rendered(text)
    special = tokenizer.special_tokens
    parts: list[np.ndarray] = []
    for piece in special_pattern(tuple(special)).split(text):
        if piece in special:
            parts.append(np.array([special[piece]]))
        elif piece:
            parts.append(tokenizer.encode(hidden.restore(piece)))
    return np.concatenate(parts)
