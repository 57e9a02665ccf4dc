"""Models that decode step by step with a KV cache: our own model, and models of the transformers library.

Shapes: B prompts, S length of the longest prompt, V vocab_size.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from train.models.attention.kv_cache import KVCache
from train.models.dbrx import DbrxForCausalLM


class Decoder(Protocol):
    """A model that keeps the past tokens of a batch of documents in a cache."""

    max_seq_len: int

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Clear the cache and read the prompts, which must not be empty. Returns the logits [B, V] for the token that
        follows each prompt."""
        ...

    def step(self, tokens: Sequence[int | None]) -> Tensor:
        """Append one token to each document; None means that the document has ended. Returns the logits [B, V] for the
        token that follows each document."""
        ...


class DbrxDecoder:
    """Our own model with its KV cache. The model must be in eval mode. If the model is sharded, every rank must run the
    same steps."""

    def __init__(self, model: DbrxForCausalLM) -> None:
        self.model = model
        self.max_seq_len = model.config.max_seq_len
        self._cache = KVCache(0, model.config)

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        self._cache = KVCache(len(prompts), self.model.config)
        longest = max(map(len, prompts))
        return self._read([[*prompt, *[None] * (longest - len(prompt))] for prompt in prompts])

    def step(self, tokens: Sequence[int | None]) -> Tensor:
        return self._read([[token] for token in tokens])

    def _read(self, rows: Sequence[Sequence[int | None]]) -> Tensor:
        """Run the model on rows of tokens, where None is padding, and return the logits of each row's last token."""
        ids_BS = torch.tensor([[-1 if token is None else token for token in row] for row in rows])
        ids_BS = ids_BS.to(next(self.model.parameters()).device)
        documents_BS = torch.where(ids_BS < 0, -1, 0)
        out = self.model(ids_BS.clamp(min=0), document_ids=documents_BS, cache=self._cache, return_logits="last")
        assert out.logits_BSV is not None
        return out.logits_BSV[:, 0]


class TransformersDecoder:
    """A causal language model of the transformers library, with the cache of this library. Prompts are padded on the
    left."""

    def __init__(self, model: Any, pad_token_id: int) -> None:
        self.model, self.pad_token_id = model.eval(), pad_token_id
        self.max_seq_len: int = model.config.max_position_embeddings
        self._cache: Any = None
        self._mask_BS = torch.empty(0)

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        longest = max(map(len, prompts))
        rows = [[*[self.pad_token_id] * (longest - len(prompt)), *prompt] for prompt in prompts]
        length_B = torch.tensor([len(prompt) for prompt in prompts])
        self._cache = None
        self._mask_BS = (torch.arange(longest) >= longest - length_B.unsqueeze(1)).long().to(self.model.device)
        return self._read(torch.tensor(rows, device=self.model.device))

    def step(self, tokens: Sequence[int | None]) -> Tensor:
        ids = [self.pad_token_id if token is None else token for token in tokens]
        self._mask_BS = torch.cat((self._mask_BS, torch.ones_like(self._mask_BS[:, :1])), dim=1)
        return self._read(torch.tensor(ids, device=self.model.device).unsqueeze(1))

    def _read(self, ids_BS: Tensor) -> Tensor:
        position_BS = (self._mask_BS.cumsum(1) - 1).clamp(min=0)[:, -ids_BS.shape[1] :]
        out = self.model(
            input_ids=ids_BS,
            attention_mask=self._mask_BS,
            position_ids=position_BS,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = out.past_key_values
        return out.logits[:, -1]
