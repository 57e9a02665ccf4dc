"""DBRX (Databricks, 2024): pre-norm transformer blocks of grouped-query attention and a mixture of experts.

Modules are nested and named as in Hugging Face's DbrxForCausalLM, so that every parameter has its name and shape there.
Padding is taken out once, at the start: everything between the embedding and the head works on [T, D], where T counts
the tokens that are not padding. So padding is neither computed nor routed nor counted.

Shapes: B rows, S row length, T tokens that are not padding, N trained tokens, D d_model, V vocab_size, L layers,
E experts.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.models.attention import Attention, Layout, make_layout
from train.models.config import ModelConfig
from train.models.moe import MoE, RouterStats

IGNORED = -100
"""The label of a position that is not trained on."""


class DbrxOutput(NamedTuple):
    losses_BS: Tensor | None
    """Cross-entropy of each position in at least fp32, 0 where the label is IGNORED; None without labels."""
    logits_BSV: Tensor | None
    """Only when asked for; 0 at the padding."""
    counts_LE: Tensor
    """Assignments of the batch's tokens to each layer's experts."""
    prob_sums_LE: Tensor
    """Sums of the routers' probabilities over the batch's tokens."""


class NormAttnNorm(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.d_model, bias=False)
        self.attn = Attention(config)
        self.norm_2 = nn.LayerNorm(config.d_model, bias=False)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x_TD: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        x_TD = x_TD + self.dropout(self.attn(self.norm_1(x_TD), layout))
        return x_TD, self.norm_2(x_TD)


class DbrxBlock(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm_attn_norm = NormAttnNorm(config)
        self.ffn = MoE(config)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x_TD: Tensor, layout: Layout) -> tuple[Tensor, RouterStats]:
        x_TD, normed_TD = self.norm_attn_norm(x_TD, layout)
        y_TD, stats = self.ffn(normed_TD)
        return x_TD + self.dropout(y_TD), stats


class DbrxModel(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim, self.rope_theta = config.head_dim, config.attn_config.rope_theta
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.dropout = nn.Dropout(config.emb_pdrop)
        self.blocks = nn.ModuleList(DbrxBlock(config) for _ in range(config.n_layers))
        self.norm_f = nn.LayerNorm(config.d_model, bias=False)

    def forward(self, input_ids_BS: Tensor, document_ids_BS: Tensor) -> tuple[Tensor, Layout, RouterStats]:
        """Returns the normed hidden states [T, D], where they stand, and the layers' statistics stacked to [L, E]."""
        place_T = (document_ids_BS.flatten() >= 0).nonzero().squeeze(1)
        x_TD = self.dropout(self.wte(input_ids_BS.flatten()[place_T]))
        layout = make_layout(document_ids_BS, self.head_dim, self.rope_theta, x_TD.dtype)
        stats = []
        for block in self.blocks:
            x_TD, block_stats = block(x_TD, layout)
            stats.append(block_stats)
        counts_LE, prob_sums_LE = (torch.stack(column) for column in zip(*stats, strict=True))
        return self.norm_f(x_TD), layout, RouterStats(counts_LE, prob_sums_LE)


class DbrxForCausalLM(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = DbrxModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        document_ids: Tensor | None = None,
        return_logits: bool = False,
    ) -> DbrxOutput:
        """The per-token losses when there are labels, the logits when asked for, and the routers' statistics.

        input_ids [B, S]; labels [B, S], already shifted: labels[t] is what should follow position t, or IGNORED;
        document_ids [B, S]: 0, 1, ... in each row, -1 for padding, one document a row when absent.
        """
        if document_ids is None:
            document_ids = torch.zeros_like(input_ids)
        x_TD, layout, stats = self.transformer(input_ids, document_ids)
        losses_BS = self._losses(x_TD, layout, labels) if labels is not None else None
        logits_BSV = None
        if return_logits:
            logits_TV = self.lm_head(x_TD)
            rows = logits_TV.new_zeros(input_ids.numel(), logits_TV.shape[-1]).index_copy(0, layout.place_T, logits_TV)
            logits_BSV = rows.unflatten(0, input_ids.shape)
        return DbrxOutput(losses_BS, logits_BSV, stats.counts_E, stats.prob_sums_E)

    def _losses(self, x_TD: Tensor, layout: Layout, labels_BS: Tensor) -> Tensor:
        labels_T = labels_BS.flatten()[layout.place_T]
        trained_N = (labels_T != IGNORED).nonzero().squeeze(1)
        # The head is the widest GEMM of a small model: positions without a label do not pay for it.
        logits_NV = self.lm_head(x_TD[trained_N])
        logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
        losses_N = F.cross_entropy(logits_NV, labels_T[trained_N], reduction="none")
        losses = losses_N.new_zeros(labels_BS.numel()).index_copy(0, layout.place_T[trained_N], losses_N)
        return losses.view(labels_BS.shape)
