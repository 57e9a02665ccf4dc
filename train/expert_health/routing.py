"""Metrics of each layer's router, computed from the sums of a step.

Shapes: L layers, E experts.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_TRAINED = re.compile(r"transformer\.blocks\.(\d+)\.ffn\.(router|experts)\.")


@dataclass(frozen=True, kw_only=True, eq=False)
class RoutingSums:
    """Sums over the tokens of a step, from all ranks and microbatches."""

    counts_LE: np.ndarray
    """Number of tokens assigned to each expert."""
    z_sums_L: np.ndarray
    """Sums of logsumexp(router logits)^2."""
    logit_squares_L: np.ndarray
    """Sums of the squared router logits over tokens and experts."""
    top_k: int

    @property
    def tokens_L(self) -> np.ndarray:
        """Number of tokens that each layer routed. It is the same for all layers."""
        return self.counts_LE.sum(1) / self.top_k


def load_imbalance(counts_LE: np.ndarray) -> np.ndarray:
    """Return [L]: the maximum divided by the mean of the number of tokens per expert, or 1 if there are no tokens."""
    mean_L = counts_LE.mean(1)
    return np.divide(counts_LE.max(1), mean_L, out=np.ones_like(mean_L), where=mean_L > 0)


def load_shares(counts_LE: np.ndarray) -> np.ndarray:
    """Return [L, E]: each expert's share of its layer's assignments, or 0 if there are no assignments."""
    return counts_LE / counts_LE.sum(1, keepdims=True).clip(min=1)


def effective_experts(shares_LE: np.ndarray) -> np.ndarray:
    """Return [L]: exp(entropy of the shares) / E. This is 1 if the load is even, and 1/E if one expert gets all
    tokens."""
    logs_LE = np.log(shares_LE, out=np.zeros_like(shares_LE), where=shares_LE > 0)
    return np.exp(-(shares_LE * logs_LE).sum(1)) / shares_LE.shape[1]


def layer_metrics(sums: RoutingSums) -> dict[str, float]:
    """Return the metrics `experts/layer_L/...`: the load shares, metrics that are computed from the shares, and the
    magnitude of the router logits."""
    shares_LE, tokens_L = load_shares(sums.counts_LE), sums.tokens_L.clip(min=1)
    columns_L = {
        "load_imbalance": load_imbalance(sums.counts_LE),
        "effective_experts": effective_experts(shares_LE),
        "dead": (sums.counts_LE == 0).sum(1),
        "router_logit_rms": np.sqrt(sums.logit_squares_L / (tokens_L * shares_LE.shape[1])),
        "router_z": sums.z_sums_L / tokens_L,
        **{f"load/expert_{expert}": share_L for expert, share_L in enumerate(shares_LE.T)},
    }
    return by_layer(columns_L)


def by_layer(columns_L: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the metrics of all layers, by their full names."""
    return {
        f"experts/layer_{layer}/{name}": value
        for name, values in columns_L.items()
        for layer, value in enumerate(values.tolist())
    }


def gradient_norms(names: Iterable[str], squares_P: Iterable[float]) -> dict[str, float]:
    """Return `experts/layer_L/{router,experts}_grad_norm`: the gradient norms over the trained parameters (weights or
    adapters) of each layer's router and experts.

    names: names of the trained parameters. squares_P: squared gradient norm of each of these parameters.
    """
    sums: dict[tuple[str, str], float] = {}
    for name, square in zip(names, squares_P, strict=True):
        if (found := _TRAINED.match(name)) is not None:
            layer, part = found.groups()
            sums[layer, part] = sums.get((layer, part), 0.0) + square
    return {f"experts/layer_{layer}/{part}_grad_norm": float(np.sqrt(s)) for (layer, part), s in sums.items()}
