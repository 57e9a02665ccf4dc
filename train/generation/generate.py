"""Generates text token by token, by greedy decoding or by sampling, for a batch of prompts of different lengths.

Shapes: B prompts, V vocab_size.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.tokenization.tokenizer import Tokenizer
from train.config.sampling import Sampling, room
from train.generation.decoders import Decoder

_REPLACEMENT = "\ufffd"


@torch.no_grad()
def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_token_ids: Iterable[int],
    *,
    first_number: int = 0,
    agree: Callable[[Tensor], None] | None = None,
) -> Iterator[list[int | None]]:
    """Step by step, yield the new token of each prompt, or None for prompts whose answer has ended. A stop token ends
    an answer and is not returned. An answer also ends after max_new_tokens tokens, or when the document reaches the
    model's max_seq_len (see room).

    first_number: the number of the first prompt among all prompts (see Sampling.seed). agree: overwrites the chosen ids
    [B] in place, so that they are the same on all ranks.
    """
    stop = frozenset(stop_token_ids)
    left = [room(len(prompt), sampling, decoder.max_seq_len) for prompt in prompts]
    assert min(left) > 0, "a prompt is so long that no tokens can be generated within max_seq_len"
    draws = [torch.Generator().manual_seed(_key(sampling.seed, first_number + row)) for row in range(len(prompts))]
    logits_BV = decoder.start(prompts)
    while True:
        ids_B = choose(logits_BV, sampling, draws)
        if agree is not None:
            agree(ids_B)
        tokens: list[int | None] = []
        for row, token in enumerate(ids_B.tolist()):
            ended = left[row] == 0 or token in stop
            left[row] = 0 if ended else left[row] - 1
            tokens.append(None if ended else token)
        if not all(token is None for token in tokens):
            yield tokens
        if not any(left):
            return
        # The last token of a document was already yielded, and the model does not need to read it.
        logits_BV = decoder.step([token if rest else None for token, rest in zip(tokens, left, strict=True)])


def _key(seed: int, number: int) -> int:
    # The seed is a hash, because torch uses only the lower 32 bits of a generator's seed, and because generators with
    # similar seeds draw similar first numbers.
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def choose(logits_BV: Tensor, sampling: Sampling, draws: Sequence[torch.Generator]) -> Tensor:
    """The next ids [B]: those with the highest logits, or samples from the distribution after temperature, top_k and
    top_p."""
    if sampling.temperature == 0:
        return logits_BV.argmax(1)
    logits_BV = logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))
    # The maximum is subtracted, so that even a very low temperature does not cause NaN values: exp(-inf) is 0.
    scaled_BV = (logits_BV - logits_BV.amax(1, keepdim=True)) / sampling.temperature
    probs_BV, ids_BV = scaled_BV.softmax(1).sort(dim=1, descending=True, stable=True)
    sums_BV = probs_BV.cumsum(1)
    # The token with which the sum reaches top_p is included, because the sum of the tokens before it is less than
    # top_p.
    kept_B = ((sums_BV - probs_BV) < sampling.top_p).sum(1).clamp(1, sampling.top_k)
    total_B1 = sums_BV.gather(1, kept_B.unsqueeze(1) - 1)
    # The random numbers are drawn on the CPU, so that they are the same for every device.
    drawn_B = torch.stack([torch.rand((), generator=draw, dtype=torch.float64) for draw in draws])
    at_B1 = drawn_B.to(sums_BV).unsqueeze(1) * total_B1
    rank_B = torch.minimum((sums_BV <= at_B1).sum(1), kept_B - 1)
    return ids_BV.gather(1, rank_B.unsqueeze(1)).squeeze(1)


class TextStream:
    """Decodes a stream of tokens into pieces of text. The joined pieces equal the text of all tokens.

    A character whose bytes are split over several tokens is returned only when it is complete.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = self._read = 0
        """Ids before _start are no longer needed. The text of ids before _read was already returned. The ids from
        _start to _read are decoded again, because the text of an id may depend on the ids before it (for example,
        whether it has a leading space)."""
        self._n_emitted = 0
        """Number of characters after _read that were already returned."""

    def add(self, token: int) -> str:
        """Add a token, and return the new text that later tokens cannot change."""
        self._ids.append(token)
        text = self._new_text()
        # A character has at most 4 bytes, so at most the last 3 may belong to an incomplete character.
        certain = text[:-3] + text[-3:].rstrip(_REPLACEMENT)
        piece, self._n_emitted = certain[self._n_emitted :], max(self._n_emitted, len(certain))
        if certain == text:
            self._start, self._read, self._n_emitted = self._read, len(self._ids), 0
        return piece

    def end(self) -> str:
        """Return the rest of the text: replacement characters for trailing bytes that do not form a complete
        character."""
        return self._new_text()[self._n_emitted :]

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._read])
        return self._tokenizer.decode(self._ids[self._start :])[len(before) :]


@dataclass
class Answer:
    """The answer to one prompt."""

    tokens: list[int]
    text: str
    ended: bool
    """Whether a stop token ended the answer, rather than max_new_tokens or max_seq_len."""


def stream_answers(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_token_ids: Iterable[int],
    *,
    first_number: int = 0,
    agree: Callable[[Tensor], None] | None = None,
) -> Iterator[tuple[int, str, Answer | None]]:
    """Generate answers, and yield their text in pieces. Each yielded tuple contains the index of a prompt, the next
    piece of its answer, and either the Answer, if it is complete, or None. For the arguments, see generate."""
    streams = [TextStream(tokenizer) for _ in prompts]
    tokens: list[list[int]] = [[] for _ in prompts]
    texts = ["" for _ in prompts]
    open_rows = set(range(len(prompts)))

    def event(row: int, piece: str, *, ends: bool) -> tuple[int, str, Answer | None]:
        texts[row] += piece
        if not ends:
            return row, piece, None
        open_rows.discard(row)
        most = room(len(prompts[row]), sampling, decoder.max_seq_len)
        return row, piece, Answer(tokens[row], texts[row], ended=len(tokens[row]) < most)

    for new in generate(decoder, prompts, sampling, stop_token_ids, first_number=first_number, agree=agree):
        for row in sorted(open_rows):
            token = new[row]
            if token is None:
                yield event(row, streams[row].end(), ends=True)
            else:
                tokens[row].append(token)
                yield event(row, streams[row].add(token), ends=False)
    for row in sorted(open_rows):
        yield event(row, streams[row].end(), ends=True)
