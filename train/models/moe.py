"""The mixture of experts: a router in fp32, dropless experts, and the load-balancing and router z-losses.

Shapes: T tokens, D d_model, E experts, K experts per token.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from train.models.config import ModelConfig
from train.models.experts.assignment import assign
from train.models.experts.experts import Experts
from train.models.lora.linear import Linear


class RouterStats(NamedTuple):
    """Statistics of the router for the batch's tokens. The sums can be added over ranks and microbatches."""

    counts_E: Tensor
    """Number of tokens assigned to each expert."""
    prob_sums_E: Tensor
    """Sum of the router probabilities; with gradient."""
    z_sum: Tensor
    """Sum of logsumexp(logits)^2, a scalar; with gradient."""
    logit_squares: Tensor
    """Sum of the squared logits over tokens and experts, a scalar."""
    logits_TE: Tensor


class Routing(NamedTuple):
    weights_TK: Tensor
    """The router weights of the selected experts, in the dtype of x."""
    experts_TK: Tensor
    probs_TE: Tensor
    """The router probabilities, in at least fp32, like the logits."""
    logits_TE: Tensor


class Router(nn.Module):
    """softmax over all experts in fp32, then top-k weights divided by their norm, as in DBRX and in MegaBlocks'
    LearnedRouter."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        ffn = config.ffn_config
        self.moe_top_k, self.moe_jitter_eps = ffn.moe_top_k, ffn.moe_jitter_eps
        self.moe_normalize_expert_weights = ffn.moe_normalize_expert_weights
        self.layer = Linear(config.d_model, ffn.moe_num_experts)

    def forward(self, x_TD: Tensor) -> Routing:
        if self.training and self.moe_jitter_eps:
            # This creates a new tensor for the router. The input of the experts is unchanged.
            x_TD = x_TD * torch.empty_like(x_TD).uniform_(1 - self.moe_jitter_eps, 1 + self.moe_jitter_eps)
        logits_TE = self.layer(x_TD)
        logits_TE = logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32))
        probs_TE = logits_TE.softmax(dim=-1)
        weights_TK, experts_TK = probs_TE.topk(self.moe_top_k, dim=-1)
        if self.moe_normalize_expert_weights is not None:
            weights_TK = weights_TK / weights_TK.norm(p=self.moe_normalize_expert_weights, dim=-1, keepdim=True)
        return Routing(weights_TK.to(x_TD.dtype), experts_TK, probs_TE, logits_TE)


class MoE(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_experts = config.ffn_config.moe_num_experts
        self.router = Router(config)
        self.experts = Experts(config.d_model, config.ffn_config)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, RouterStats]:
        weights_TK, experts_TK, probs_TE, logits_TE = self.router(x_TD)
        assignment = assign(experts_TK, self.n_experts)
        # Computed before the experts, because recomputation of a block stops at the last tensor that backward needs,
        # and should stop before expert parallelism sends results back.
        z_sum = logits_TE.logsumexp(dim=-1).square().sum()
        y_TD = self.experts(x_TD, weights_TK, assignment)
        return y_TD, RouterStats(assignment.counts_E, probs_TE.sum(0), z_sum, sum_of_squares(logits_TE), logits_TE)


def sum_of_squares(logits_TE: Tensor) -> Tensor:
    """Sum of the squared logits, computed without recording gradients and without copying the logits."""
    return torch.linalg.vector_norm(logits_TE.detach()).square()


def load_balancing_loss(
    prob_sums_LE: Tensor, counts_LE: Tensor, tokens_counted: Tensor | int, tokens: Tensor | int, top_k: int
) -> Tensor:
    """E / (L K) * sum over layers of dot(counts_l / tokens_counted, prob_sums_l / tokens): MegaBlocks' batched loss.

    With counts and probabilities over the same tokens, this equals E / (L T K) * sum_l dot(counts_l, mean_t probs_l),
    which is 1 for an even load. For fixed counts, the loss is linear in the probabilities, so the losses of parts of a
    batch can be summed.
    """
    L, E = counts_LE.shape
    shares_LE = counts_LE.to(prob_sums_LE.dtype) / tokens_counted
    return E / (L * top_k) * (shares_LE * prob_sums_LE).sum() / tokens


def router_z_loss(z_sums_L: Tensor, tokens: Tensor | int) -> Tensor:
    """Mean over layers and tokens of logsumexp(logits)^2 (ST-MoE, Zoph et al. 2022, eq. 5).

    MegaBlocks' batched_router_zloss returns a separate mean over tokens for each layer. Here, as in OLMo, the mean is
    also taken over layers, so that the loss does not grow with the number of layers.
    """
    return z_sums_L.mean() / tokens
