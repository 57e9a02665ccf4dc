"""The variants of scripts/bench/moe.py: our backends, the layers of transformers and MegaBlocks, a dense layer, and
GEMMs."""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scripts.bench import common
from scripts.bench.gemms import gemm_kinds
from train.hf.config_json import transformers_config
from train.models.config import FFNConfig, ModelConfig
from train.models.moe import MoE

Variant = Callable[[Tensor, Tensor], Any]


def build_variants(args: argparse.Namespace) -> tuple[dict[str, Variant], list[str]]:
    """Return all available variants, which share their weights, and notes on variants that are not available."""
    variants: dict[str, Variant] = {}
    notes: list[str] = []
    dtype = getattr(torch, args.dtype)
    reference = our_layer(args, "torch")
    for param in reference.parameters():
        torch.nn.init.normal_(param, std=0.02)
    weights = reference.state_dict()
    for moe_impl in common.available_moe_impls(args.device, dtype, notes):
        for recompute in (False, True):
            layer = our_layer(args, moe_impl, recompute)
            layer.load_state_dict(weights, assign=True)
            variants[f"ours, {moe_impl}" + ", recompute" * recompute] = layer_variant(layer)
    variants["ours, torch"] = layer_variant(reference)
    for part, experts in ((1 / 2, "half of all tokens to one expert"), (1.0, "all tokens to one expert")):
        variants[f"ours, torch, {experts}"] = skewed_variant(args, reference, part)
    add_transformers(args, variants, notes, weights)
    add_megablocks(args, variants, notes, weights)
    variants["dense layer with equal active FLOPs"] = dense_variant(args)
    add_gemms(args, variants)
    return variants, notes


def model_config(args: argparse.Namespace, moe_impl: str = "torch", recompute: bool = False) -> ModelConfig:
    ffn = FFNConfig(
        ffn_hidden_size=args.ffn_hidden_size,
        moe_num_experts=args.moe_num_experts,
        moe_top_k=args.moe_top_k,
        moe_impl=moe_impl,  # type: ignore[arg-type]
        moe_recompute=recompute,
    )
    return ModelConfig(d_model=args.d_model, n_heads=max(8, args.d_model // 128), ffn_config=ffn)


def our_layer(args: argparse.Namespace, moe_impl: str, recompute: bool = False) -> Any:
    with torch.device(args.device):
        layer = MoE(model_config(args, moe_impl, recompute))
    return layer.to(getattr(torch, args.dtype))


def layer_variant(layer: Any, batched: bool = False) -> Variant:
    """Return a variant that runs the forward and backward passes of a module. The module's first result is [T, D], or
    [1, T, D] if batched."""

    def variant(x: Tensor, dy: Tensor) -> Any:
        x = x.detach().requires_grad_()
        y = layer(x.unsqueeze(0) if batched else x)
        y = y if hasattr(y, "backward") else y[0]
        y.reshape(dy.shape).backward(dy)
        # Free the gradients before the next variant runs. At DBRX's width, the gradients of a layer need 6 GB.
        for param in layer.parameters():
            param.grad = None
        return y

    return variant


def skewed_variant(args: argparse.Namespace, layer: Any, part: float) -> Variant:
    """Return a variant in which a fraction of the tokens is routed to the first expert. The other experts of these
    tokens remain random.

    With the chosen logits, the weights of the other experts are small but not denormal: Intel CPUs are 100 times slower
    with denormal numbers, which a real router does not produce.
    """
    tokens = torch.arange(args.tokens, device=args.device) < part * args.tokens

    def push(module: Any, inputs: Any, logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[:, 0] = torch.where(tokens, 20.0, -20.0).to(logits.dtype)
        return logits

    run = layer_variant(layer)

    def variant(x: Tensor, dy: Tensor) -> Any:
        with_hook = layer.router.layer.register_forward_hook(push)
        try:
            return run(x, dy)
        finally:
            with_hook.remove()

    return variant


def add_transformers(args: argparse.Namespace, variants: dict[str, Variant], notes: list[str], weights: dict) -> None:
    try:
        import transformers
        from transformers.models.dbrx.modeling_dbrx import DbrxFFN
    except ImportError as error:
        notes.append(f"not measured: transformers' layer ({error})")
        return
    with torch.device(args.device):
        layer = DbrxFFN(transformers_config(model_config(args)))
    layer.to(getattr(torch, args.dtype)).load_state_dict(weights, assign=True)
    variants["transformers"] = layer_variant(layer, batched=True)
    notes.append(f"transformers {transformers.__version__}")


def add_megablocks(args: argparse.Namespace, variants: dict[str, Variant], notes: list[str], weights: dict) -> None:
    """Add MegaBlocks' own layer, with its router."""
    try:
        layer = megablocks_layer(args)
        layer.load_state_dict(weights, assign=True)
    except Exception as error:
        notes.append(f"not measured: MegaBlocks' own layer ({type(error).__name__}: {error})")
        return
    run = layer_variant(layer, batched=True)

    def variant(x: Tensor, dy: Tensor) -> Any:
        from megablocks.layers.moe import clear_load_balancing_loss  # pyright: ignore[reportMissingImports]

        clear_load_balancing_loss()
        return run(x, dy)

    variants["MegaBlocks' own layer"] = variant


def megablocks_layer(args: argparse.Namespace) -> Any:
    from megablocks.layers.arguments import Arguments  # pyright: ignore[reportMissingImports]
    from megablocks.layers.dmoe import dMoE  # pyright: ignore[reportMissingImports]

    arguments = Arguments(
        hidden_size=args.d_model,
        ffn_hidden_size=args.ffn_hidden_size,
        bias=False,
        return_bias=False,
        activation_fn=torch.nn.functional.silu,
        moe_num_experts=args.moe_num_experts,
        moe_top_k=args.moe_top_k,
        moe_normalize_expert_weights=1,
        moe_loss_weight=0.0,
        memory_optimized_mlp=True,
        mlp_type="glu",
        mlp_impl="grouped",
        fp16=False,
        bf16=args.dtype == "bfloat16",
        device=torch.device(args.device),
    )
    return dMoE(arguments)


class DenseGLU(torch.nn.Module):
    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.w1, self.v1 = (torch.nn.Linear(d_model, width, bias=False) for _ in range(2))
        self.w2 = torch.nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(torch.nn.functional.silu(self.w1(x)) * self.v1(x))


def dense_variant(args: argparse.Namespace) -> Variant:
    """A dense GLU that is as wide as all active experts of a token combined."""
    with torch.device(args.device):
        layer = DenseGLU(args.d_model, args.moe_top_k * args.ffn_hidden_size)
    return layer_variant(layer.to(getattr(torch, args.dtype)))


def add_gemms(args: argparse.Namespace, variants: dict[str, Variant]) -> None:
    """Add variants that run only the nine GEMMs of a layer: one variant with a single expert, and one with the
    assignments split equally over all experts."""
    A, D, F = args.tokens * args.moe_top_k, args.d_model, args.ffn_hidden_size
    made: Any = {"device": args.device, "dtype": getattr(torch, args.dtype)}
    x, h, w = torch.randn(A, D, **made), torch.randn(A, F, **made), torch.randn(args.moe_num_experts * F, D, **made)
    out_F, out_D, out_w = torch.empty_like(h), torch.empty_like(x), torch.empty_like(w)

    def by(mm: Callable[..., Any], n_experts: int) -> Variant:
        def variant(*inputs: Any) -> None:
            rows = A // n_experts
            for e in range(n_experts):
                part, flat = slice(e * rows, (e + 1) * rows), slice(e * F, (e + 1) * F)
                for _matrix in range(3):
                    mm(x[part], w[flat].t(), out_F[part])
                    mm(h[part], w[flat], out_D[part])
                    mm(h[part].t(), x[part], out_w[flat])

        return variant

    for n_experts, what in ((1, "dense"), (args.moe_num_experts, "one expert after the other")):
        for kind, mm in gemm_kinds(w).items():
            variants[f"GEMMs, {kind}, {what}"] = by(mm, n_experts)
