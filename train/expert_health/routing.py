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
        """Number of tokens that each layer routed; the same for all layers."""
        return self.counts_LE.sum(1) / self.top_k


def load_imbalance(counts_LE: np.ndarray) -> np.ndarray:
    """[L] the maximum divided by the mean of the tokens per expert; 1 if there are no tokens."""
    mean_L = counts_LE.mean(1)
    return np.divide(counts_LE.max(1), mean_L, out=np.ones_like(mean_L), where=mean_L > 0)


def load_shares(counts_LE: np.ndarray) -> np.ndarray:
    """[L, E] each expert's share of the assignments of its layer; 0 if there are none."""
    return counts_LE / counts_LE.sum(1, keepdims=True).clip(min=1)


def effective_experts(shares_LE: np.ndarray) -> np.ndarray:
    """[L] exp(entropy of the shares) / E. It is 1 for an even load, and 1/E if one expert has all tokens."""
    logs_LE = np.log(shares_LE, out=np.zeros_like(shares_LE), where=shares_LE > 0)
    return np.exp(-(shares_LE * logs_LE).sum(1)) / shares_LE.shape[1]


def layer_metrics(sums: RoutingSums) -> dict[str, float]:
    """`experts/layer_L/...`: load shares and metrics derived from them, and the magnitude of the router logits."""
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
    """The metrics of all layers under their full names."""
    return {
        f"experts/layer_{layer}/{name}": value
        for name, values in columns_L.items()
        for layer, value in enumerate(values.tolist())
    }


def gradient_norms(names: Iterable[str], squares_P: Iterable[float]) -> dict[str, float]:
    """`experts/layer_L/{router,experts}_grad_norm` of the trained parameters of each layer: weights or adapters.

    names: names of the trained parameters. squares_P: squared norm of the gradient of each.
    """
    sums: dict[tuple[str, str], float] = {}
    for name, square in zip(names, squares_P, strict=True):
        if (found := _TRAINED.match(name)) is not None:
            layer, part = found.groups()
            sums[layer, part] = sums.get((layer, part), 0.0) + square
    return {f"experts/layer_{layer}/{part}_grad_norm": float(np.sqrt(s)) for (layer, part), s in sums.items()}
