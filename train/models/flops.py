"""The number of floating-point operations of a training step, computed from the config, without torch.

GEMMs are counted with two operations per multiply-add, as in torch's FlopCounterMode. For attention, all S x S scores
of a row are counted, although a causal kernel computes only half of them. All tokens are counted as trained tokens,
that is, logits are counted for every token.

Shapes: L layers, S row length, D d_model, K experts per token, F ffn_hidden_size, R rank of the adapters.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from train.models.config import LoraConfig, ModelConfig
from train.models.shapes import adapter_shapes, count_adapters, count_parameters, parameter_shapes

Recompute = Literal["none", "block", "selective"]
PARTS = ("attention", "scores", "router", "experts", "adapters", "head")
"""The parts of the model. attention: the projections of attention. scores: the product of queries and keys, and that of
scores and values."""


def flops_per_token(model: ModelConfig, seq_len: int, lora: LoraConfig | None = None) -> int:
    """The FLOPs per token of a training step, forward and backward, as in the PaLM paper: 6 per active parameter (4 if
    the parameter is frozen, with LoRA), plus 12 L S D for attention over whole rows. The embedding is not counted,
    because it is a lookup."""
    active = count_parameters(model)[1] - model.vocab_size * model.d_model
    attention = 12 * model.n_layers * seq_len * model.d_model
    if lora is None:
        return 6 * active + attention
    return 4 * active + 6 * count_adapters(model, lora)[1] + attention


@dataclass(frozen=True, kw_only=True)
class Flops:
    """The FLOPs per token of a training step in one part of the model."""

    part: str
    """One of PARTS."""
    forward: int = 0
    backward: int = 0
    recomputed: int = 0
    """Operations of the forward pass that are repeated in the backward pass."""

    @property
    def total(self) -> int:
        return self.forward + self.backward + self.recomputed


def flops_by_part(
    model: ModelConfig,
    seq_len: int,
    lora: LoraConfig | None = None,
    *,
    trained: Collection[str] | None = None,
    recompute: Recompute = "none",
) -> list[Flops]:
    """The FLOPs per token of a training step, in the order of PARTS.

    trained: names of the trained parameters. None means all parameters or, with lora, all adapters. Gradients that no
    trained parameter needs are not counted.
    """
    if trained is None:
        trained = adapter_shapes(model, lora) if lora is not None else parameter_shapes(model)
    sums = {part: Flops(part=part) for part in PARTS}
    for each in _products(model, seq_len, lora, set(trained), recompute):
        so_far = sums[each.part]
        sums[each.part] = Flops(
            part=each.part,
            forward=so_far.forward + each.forward,
            backward=so_far.backward + each.backward,
            recomputed=so_far.recomputed + each.recomputed,
        )
    return list(sums.values())


def _products(
    model: ModelConfig, seq_len: int, lora: LoraConfig | None, trained: set[str], recompute: Recompute
) -> Iterator[Flops]:
    flows = "transformer.wte.weight" in trained
    adapters = adapter_shapes(model, lora) if lora is not None else {}
    for number in range(model.n_layers):
        prefix = f"transformer.blocks.{number}."
        own, adapted = (_within(prefix, names) for names in (trained, adapters))
        block = _Block(model, seq_len, lora, own, adapted, flows, selective=recompute == "selective")
        products = list(block.products())
        flows = block.flows
        yield from map(_repeated, products) if flows and recompute == "block" else products
    flows |= "transformer.norm_f.weight" in trained
    size = 2 * model.vocab_size * model.d_model
    yield Flops(part="head", forward=size, backward=size * (flows + ("lm_head.weight" in trained)))


def _within(prefix: str, names: Iterable[str]) -> set[str]:
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def _repeated(product: Flops) -> Flops:
    return replace(product, recomputed=product.recomputed + product.forward)


class _Block:
    """The matrix products of one block. Tracks whether a gradient flows back into the input of each product.

    trained and adapted: names without the block's prefix. selective: whether activation checkpointing is selective
    (train/models/recompute.py). Selective checkpointing recomputes attention and the adapters on its projections, but
    not the projections themselves.
    """

    def __init__(
        self,
        model: ModelConfig,
        seq_len: int,
        lora: LoraConfig | None,
        trained: set[str],
        adapted: set[str],
        flows: bool,
        *,
        selective: bool,
    ) -> None:
        self.model, self.seq_len, self.lora = model, seq_len, lora
        self.trained, self.adapted = trained, adapted
        self.flows, self.selective = flows, selective

    def products(self) -> Iterator[Flops]:
        d, attn = self.model.d_model, "norm_attn_norm.attn"
        width = d + 2 * self.model.head_dim * self.model.attn_config.kv_n_heads
        self.flows |= "norm_attn_norm.norm_1.weight" in self.trained
        yield from self._linear("attention", f"{attn}.Wqkv", d, width, repeats=self.selective)
        scores, enters = 4 * self.seq_len * d, self.flows
        projected = list(self._linear("attention", f"{attn}.out_proj", d, d, repeats=self.selective))
        again = scores if self.selective and self.flows else 0
        yield Flops(part="scores", forward=scores, backward=2 * scores * enters, recomputed=again)
        yield from projected
        self.flows |= "norm_attn_norm.norm_2.weight" in self.trained
        enters = self.flows
        yield from self._linear("router", "ffn.router.layer", d, self.model.ffn_config.moe_num_experts)
        yield from self._experts(enters)

    def _linear(self, part: str, name: str, n_in: int, n_out: int, *, repeats: bool = False) -> Iterator[Flops]:
        """The matrix products of a linear layer: x W^T and, with an adapter, (x A^T) B^T, each with the gradients that
        backward needs."""
        size, enters = 2 * n_in * n_out, self.flows
        is_trained = f"{name}.weight" in self.trained
        yield Flops(part=part, forward=size, backward=size * (enters + is_trained))
        self.flows |= is_trained
        if f"{name}.lora.lora_A" not in self.adapted:
            return
        assert self.lora is not None
        down, up = 2 * n_in * self.lora.r, 2 * self.lora.r * n_out
        of_A, of_B = (f"{name}.lora.lora_{each}" in self.trained for each in "AB")
        self.flows |= of_A or of_B
        yield Flops(
            part="adapters",
            forward=down + up,
            backward=down * (enters + of_A) + up * ((enters or of_A) + of_B),
            # Recomputation stops after the last tensor that backward needs. The product with B is needed only if x has
            # a gradient.
            recomputed=(down + up * enters) if repeats and self.flows else 0,
        )

    def _experts(self, enters: bool) -> Iterator[Flops]:
        """The three matrix products (with w1, v1 and w2) of the `moe_top_k` experts that process a token. If any
        gradient flows, backward also computes the products of gradients and weights, from which the gradients of the
        router and of the activations are computed."""
        ffn = self.model.ffn_config
        size = 2 * ffn.ffn_hidden_size * self.model.d_model * ffn.moe_top_k
        names = [f"ffn.experts.mlp.{name}" for name in ("w1", "v1", "w2")]
        of_adapters = any(name.startswith("ffn.experts.mlp.lora.") for name in self.trained)
        n_trained = sum(name in self.trained for name in names)
        self.flows |= n_trained > 0 or of_adapters
        backward = size * (1 + 2 * enters + n_trained) if self.flows else 0
        recomputed = 2 * size if self.flows and ffn.moe_recompute else 0
        yield Flops(part="experts", forward=3 * size, backward=backward, recomputed=recomputed)
        if self.lora is not None:
            yield from self._adapted_experts(self.lora, enters)

    def _adapted_experts(self, lora: LoraConfig, enters: bool) -> Iterator[Flops]:
        """The matrix products of the experts' adapters. Backward recomputes the products with A and, for w2, the
        products with B (train/models/lora/experts.py). An A that all experts share is applied once per token."""
        ffn = self.model.ffn_config
        up = 2 * ffn.ffn_hidden_size * lora.r * ffn.moe_top_k
        down = 2 * self.model.d_model * lora.r * (ffn.moe_top_k if lora.per_expert else 1)
        for name in ("w1", "v1", "w2"):
            if f"ffn.experts.mlp.lora.{name}.lora_A" not in self.adapted:
                continue
            backward = 2 * down + 3 * up if name == "w2" else (2 + enters) * down + 2 * up
            again = down + up if name != "w2" and ffn.moe_recompute else 0
            yield Flops(
                part="adapters",
                forward=down + up,
                backward=backward if self.flows else 0,
                recomputed=again if self.flows else 0,
            )
