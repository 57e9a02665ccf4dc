"""The KV cache: the keys and values of past tokens, so that generation computes only the new tokens.

Shapes: B rows, S new positions of a row, T new tokens, N allocated positions of a row in the cache, W any width, H
query heads, G key/value heads, R = H/G, C head_dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from train.models.attention.backends import AttentionBackend
from train.models.attention.layout import Documents, Layout, angles, make_layout
from train.models.config import ModelConfig

_GROWTH = 256
"""The number of positions allocated per row is a multiple of this number."""


class KVCache:
    """The keys and values of B documents, one per row. A forward pass with a cache continues each document at its
    end."""

    def __init__(self, n_rows: int, config: ModelConfig) -> None:
        self.config = config
        self.lengths = [0] * n_rows
        """Number of cached tokens of each row."""
        self._layers = [_Layer() for _ in range(config.n_layers)]

    def layouts(self, documents: Documents, dtype: torch.dtype) -> list[Layout]:
        """Return the layout of each layer for new tokens of these rows, and count these tokens as cached.

        Raises ValueError if a document would become longer than max_seq_len.
        """
        n_rows, past = len(self.lengths), self.lengths
        row_T = documents.place_T // (documents.n_positions // n_rows)
        news = torch.bincount(row_T, minlength=n_rows).tolist()
        assert len(documents.lengths) == sum(new > 0 for new in news), "a row of a cache contains one document"
        lengths = [before + new for before, new in zip(past, news, strict=True)]
        longest = max(lengths)
        if longest > self.config.max_seq_len:
            raise ValueError(
                f"a row would have {longest} positions, but the model's max_seq_len is {self.config.max_seq_len}"
            )
        if any(past):
            past_B = torch.tensor(past, device=row_T.device)
            position_T = past_B[row_T] + documents.position_T
            continuing = _ContinuingBackend(n_rows, max(news), row_T, documents.position_T, past_B, longest)
            layout = Layout(documents.place_T, *angles(position_T, self.config, dtype), continuing)
        else:
            position_T = documents.position_T
            layout = make_layout(documents, self.config, dtype)
        self.lengths = lengths
        backends = (
            _StoringBackend(layout.backend, layer, row_T, position_T, n_rows, longest) for layer in self._layers
        )
        return [layout._replace(backend=backend) for backend in backends]


class _Layer:
    """Keys and values [B, N, G, C] in the dtype of the attention computation. Allocated when the first tokens are
    stored."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def with_places(self, n_rows: int, n_places: int, like_TGC: Tensor) -> tuple[Tensor, Tensor]:
        if self.keys is None or self.values is None or self.keys.shape[1] < n_places:
            # Each later allocation at least doubles the size, so that the total number of copied elements stays below
            # twice the cache's size.
            n_places = _GROWTH * -(-n_places // _GROWTH) * (1 if self.keys is None else 2)
            self.keys = _grown(self.keys, n_rows, n_places, like_TGC)
            self.values = _grown(self.values, n_rows, n_places, like_TGC)
        return self.keys, self.values


def _grown(before: Tensor | None, n_rows: int, n_places: int, like_TGC: Tensor) -> Tensor:
    # Unused positions are masked. They must still be zero, because a mask does not remove NaN values.
    grown_BNGC = like_TGC.new_zeros(n_rows, n_places, *like_TGC.shape[1:])
    if before is not None:
        grown_BNGC[:, : before.shape[1]] = before
    return grown_BNGC


class _StoringBackend:
    """Stores the keys and values of new tokens in the cache, and computes attention with another backend.

    Unlike other backends, it is not a NamedTuple, because FSDP2 would unpack it and cast the cached tensors.
    """

    def __init__(
        self, backend: AttentionBackend, layer: _Layer, row_T: Tensor, position_T: Tensor, n_rows: int, longest: int
    ) -> None:
        self.backend, self.layer, self.row_T, self.position_T = backend, layer, row_T, position_T
        self.n_rows, self.longest = n_rows, longest

    def enter(self, x_TW: Tensor) -> Tensor:
        return self.backend.enter(x_TW)

    def leave(self, y_PW: Tensor) -> Tensor:
        return self.backend.leave(y_PW)

    def attend(self, q_PHC: Tensor, k_PGC: Tensor, v_PGC: Tensor, dropout_p: float) -> Tensor:
        shape = k_PGC.shape[1:]
        k_TGC, v_TGC = (self.backend.leave(x_PGC.flatten(1)).unflatten(1, shape) for x_PGC in (k_PGC, v_PGC))
        keys_BNGC, values_BNGC = self.layer.with_places(self.n_rows, self.longest, k_TGC)
        keys_BNGC[self.row_T, self.position_T] = k_TGC
        values_BNGC[self.row_T, self.position_T] = v_TGC
        if isinstance(self.backend, _ContinuingBackend):
            k_PGC, v_PGC = keys_BNGC[:, : self.longest], values_BNGC[:, : self.longest]
        return self.backend.attend(q_PHC, k_PGC, v_PGC, dropout_p)


class _ContinuingBackend:
    """Attention for new tokens of documents that have cached tokens: SDPA over the cache with a causal mask."""

    def __init__(self, n_rows: int, n_new: int, row_T: Tensor, offset_T: Tensor, past_B: Tensor, n_places: int) -> None:
        self.shape, self.row_T, self.offset_T = (n_rows, n_new), row_T, offset_T
        last_BS = past_B.unsqueeze(1) + torch.arange(n_new, device=row_T.device)
        self.sees_BSN = torch.arange(n_places, device=row_T.device) <= last_BS.unsqueeze(2)

    def enter(self, x_TW: Tensor) -> Tensor:
        return x_TW

    def leave(self, y_TW: Tensor) -> Tensor:
        return y_TW

    def attend(self, q_THC: Tensor, keys_BNGC: Tensor, values_BNGC: Tensor, dropout_p: float) -> Tensor:
        n_groups = keys_BNGC.shape[2]
        group = q_THC.shape[1] // n_groups
        q_BSHC = q_THC.new_zeros(*self.shape, *q_THC.shape[1:])
        q_BSHC[self.row_T, self.offset_T] = q_THC
        # The R query heads that share a key/value head are arranged as queries of a single head.
        q_BGXC = q_BSHC.unflatten(2, (n_groups, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        sees_B1XN = self.sees_BSN.repeat(1, group, 1).unsqueeze(1)
        y_BGXC = F.scaled_dot_product_attention(
            q_BGXC, keys_BNGC.transpose(1, 2), values_BNGC.transpose(1, 2), attn_mask=sees_B1XN, dropout_p=dropout_p
        )
        y_BSHC = y_BGXC.unflatten(2, (group, self.shape[1])).permute(0, 3, 1, 2, 4).flatten(2, 3)
        return y_BSHC[self.row_T, self.offset_T]
