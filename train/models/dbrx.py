"""DBRX (Databricks, 2024): pre-norm transformer blocks of grouped-query attention and a mixture of experts.

Modules are nested and named as in Hugging Face's DbrxForCausalLM, so that every parameter has the same name and shape.
Padding is removed once, at the start: everything between the embedding and the head works on [T, D], where T counts
only the tokens that are not padding. Padding tokens are therefore never computed, routed or counted.

Shapes: B rows, S row length, T tokens that are not padding, N trained tokens, D d_model, V vocab_size, L layers,
E experts.
"""

import contextlib
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from train.models.attention.attention import Attention
from train.models.attention.kv_cache import KVCache
from train.models.attention.layout import Layout, find_documents, make_layout
from train.models.config import ModelConfig
from train.models.lora.linear import Linear
from train.models.loss import head_losses
from train.models.moe import MoE, RouterStats
from train.models.recompute import recomputed, up_to_last


class DbrxOutput(NamedTuple):
    """The outputs of a forward pass. Optional outputs that were not requested are None. Values at padding positions are
    0."""

    losses_BS: Tensor | None
    """Cross-entropy of each position in at least fp32; 0 where the label is IGNORED. None without labels."""
    correct_BS: Tensor | None
    """Whether the label has the highest logit; False where the label is IGNORED. None without labels."""
    counts_LE: Tensor
    """Number of the batch's tokens assigned to each expert of each layer."""
    prob_sums_LE: Tensor
    """Sums of the router probabilities over the batch's tokens."""
    z_sums_L: Tensor
    """Sums of logsumexp(router logits)^2 over the batch's tokens."""
    logit_squares_L: Tensor
    """Sums of the squared router logits over the batch's tokens and experts; without gradient."""
    logits_BSV: Tensor | None = None
    """[B, 1, V] if only the last token's logits were requested."""
    hidden_states_BSD: tuple[Tensor, ...] | None = None
    """The input of each block, then the output of the final norm: n_layers + 1 tensors, as in transformers."""
    router_logits_BSE: tuple[Tensor, ...] | None = None
    """One tensor per layer, in at least fp32."""


class Intermediates(NamedTuple):
    """Intermediate results of DbrxModel, over [T, ...]. Lists that were not requested are empty."""

    sums: tuple[Tensor, Tensor, Tensor, Tensor]
    """counts_LE, prob_sums_LE, z_sums_L and logit_squares_L of DbrxOutput."""
    hidden: list[Tensor]
    router_logits: list[Tensor]


class NormAttnNorm(nn.Module):
    selective = False
    """Whether the backward pass recomputes the norms and attention, but not the GEMMs. Set by train/distributed."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.d_model, bias=False)
        self.attn = Attention(config)
        self.norm_2 = nn.LayerNorm(config.d_model, bias=False)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x_TD: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        if self.selective:
            qkv_TW = up_to_last(self._qkv, x_TD)
            y_TD = up_to_last(self.attn.attend, qkv_TW, layout)
        else:
            y_TD = self.attn.attend(self._qkv(x_TD), layout)
        x_TD = x_TD + self.dropout(y_TD)
        return x_TD, self.apply_norm_2(x_TD)

    def _qkv(self, x_TD: Tensor) -> Tensor:
        return self.attn.Wqkv(self.norm_1(x_TD))

    def apply_norm_2(self, x_TD: Tensor) -> Tensor:
        """Apply norm_2 and cast the result to the compute dtype. Without the cast, the router and the experts would
        each save a copy under autocast."""
        normed_TD, device = self.norm_2(x_TD), x_TD.device.type
        return normed_TD.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else normed_TD


class DbrxBlock(nn.Module):
    selective = False
    """Whether the backward pass recomputes the input of the experts from the residual stream, instead of keeping it in
    memory. Set by train/distributed."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_attn_norm = NormAttnNorm(config)
        self.ffn = MoE(config)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x_TD: Tensor, layout: Layout) -> tuple[Tensor, RouterStats]:
        x_TD, normed_TD = self.norm_attn_norm(x_TD, layout)
        with self._without_saving(normed_TD, x_TD.detach()) if self.selective else contextlib.nullcontext():
            y_TD, stats = self.ffn(normed_TD)
        return x_TD + self.dropout(y_TD), stats

    def _without_saving(self, normed_TD: Tensor, x_TD: Tensor) -> recomputed:
        return recomputed(normed_TD, lambda: self.norm_attn_norm.apply_norm_2(x_TD))


class DbrxModel(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.emb_pdrop)
        self.blocks = nn.ModuleList(DbrxBlock(config) for _ in range(config.n_layers))
        self.norm_f = nn.LayerNorm(config.d_model, bias=False)

    def forward(
        self,
        input_ids_BS: Tensor,
        document_ids_BS: Tensor,
        keep_hidden: bool,
        keep_router: bool,
        cache: KVCache | None,
    ) -> tuple[Tensor, Layout, Intermediates]:
        """Return the normalized hidden states [T, D], the layout of the tokens, and intermediate results."""
        documents = find_documents(input_ids_BS, document_ids_BS, self.config)
        x_TD = self.dropout(self.wte(input_ids_BS.flatten()[documents.place_T]))
        if cache is None:
            layouts = [make_layout(documents, self.config, x_TD.dtype)] * len(self.blocks)
        else:
            layouts = cache.layouts(documents, x_TD.dtype)
        sums, hidden, router_logits = [], [], []
        for block, layout in zip(self.blocks, layouts, strict=True):
            if keep_hidden:
                hidden.append(x_TD)
            x_TD, stats = block(x_TD, layout)
            sums.append((stats.counts_E, stats.prob_sums_E, stats.z_sum, stats.logit_squares))
            if keep_router:
                router_logits.append(stats.logits_TE)
        counts_LE, prob_sums_LE, z_sums_L, logit_squares_L = map(torch.stack, zip(*sums, strict=True))
        x_TD = self.norm_f(x_TD)
        if keep_hidden:
            hidden.append(x_TD)
        stacked = (counts_LE, prob_sums_LE, z_sums_L, logit_squares_L)
        return x_TD, layouts[0], Intermediates(stacked, hidden, router_logits)


class DbrxForCausalLM(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = DbrxModel(config)
        self.lm_head = Linear(config.d_model, config.vocab_size)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        document_ids: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        return_logits: bool | Literal["last"] = False,
        return_hidden_states: bool = False,
        return_router_logits: bool = False,
    ) -> DbrxOutput:
        """Return the router statistics, the loss of each token if labels are given, and the other requested results.

        input_ids: [B, S]. labels: [B, S], already shifted: labels[t] is the token that should follow position t, or
        IGNORED. document_ids: [B, S], 0, 1, ... in each row, and -1 for padding. By default, each row is one document.
        With a cache, each row is one document that continues where the cached part ended. return_logits: "last" returns
        only the logits of each row's last token.
        """
        if document_ids is None:
            document_ids = torch.zeros_like(input_ids)
        B, S = input_ids.shape

        def in_rows(x_TX: Tensor) -> Tensor:
            # The result is not a view of [B*S, X], because FSDP2 registers hooks on outputs, and the hook on a view can
            # be lost.
            row_T, position_T = layout.place_T.div(S, rounding_mode="floor"), layout.place_T % S
            return x_TX.new_zeros(B, S, x_TX.shape[-1]).index_put((row_T, position_T), x_TX)

        x_TD, layout, inside = self.transformer(
            input_ids, document_ids, return_hidden_states, return_router_logits, cache
        )
        losses_BS = correct_BS = None
        if labels is not None:
            losses_BS, correct_BS = head_losses(x_TD, self.lm_head.weight, labels, layout.place_T)
        logits_BSV = None
        if return_logits == "last":
            # For rows without tokens, the logits are zero, as at padding positions.
            last_BSD = in_rows(x_TD).gather(1, _last_token(document_ids).expand(-1, -1, x_TD.shape[1]))
            logits_BSV = self.lm_head(last_BSD.flatten(0, 1)).unsqueeze(1)
        elif return_logits:
            logits_BSV = in_rows(self.lm_head(x_TD))
        return DbrxOutput(
            losses_BS,
            correct_BS,
            *inside.sums,
            logits_BSV=logits_BSV,
            hidden_states_BSD=tuple(map(in_rows, inside.hidden)) if return_hidden_states else None,
            router_logits_BSE=tuple(map(in_rows, inside.router_logits)) if return_router_logits else None,
        )


def _last_token(document_ids_BS: Tensor) -> Tensor:
    """[B, 1, 1]: the position of the last token of each row, or 0 if the row contains only padding."""
    place_S = torch.arange(document_ids_BS.shape[1], device=document_ids_BS.device)
    return torch.where(document_ids_BS >= 0, place_S, 0).amax(1).view(-1, 1, 1)
