"""From an example to token ids and what of them is trained on: the response and its end token, never the prompt."""

from dataclasses import dataclass

import numpy as np

from data.examples import Example
from data.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class Document:
    """One example as tokens: `n_prompt` that are only read, then those that are trained on."""

    tokens: np.ndarray
    """int32."""
    n_prompt: int

    @property
    def trained_tokens(self) -> int:
        """Tokens that some position predicts: a document's first is nobody's label."""
        return len(self.tokens) - max(self.n_prompt, 1)


def tokenize_example(example: Example, tokenizer: Tokenizer) -> Document:
    """prompt + response + end token. The two are encoded apart, so that the border of the mask falls between tokens."""
    prompt = tokenizer.encode(example.prompt)
    response = tokenizer.encode(example.response)
    tokens = np.array([*prompt, *response, tokenizer.eos_token_id], dtype=np.int32)
    return Document(tokens, len(prompt))


def fit(document: Document, max_seq_len: int) -> Document | None:
    """The document in at most max_seq_len tokens: the response is cut at its end, and then has no end token.

    None when the prompt leaves no room for a single token of the response.
    """
    if len(document.tokens) <= max_seq_len:
        return document
    if document.n_prompt >= max_seq_len:
        return None
    return Document(document.tokens[:max_seq_len].copy(), document.n_prompt)
