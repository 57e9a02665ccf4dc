"""Runs MegaBlocks without a GPU and compares it with our torch backend; prints the differences as JSON.

test_experts.py runs it in a separate process, because Triton's interpreter must be selected before Triton is imported.
The Triton kernels and the layers are MegaBlocks' own; only its compiled parts are replaced: the CUDA extension and
grouped_gemm.
"""

import functools
import json
import multiprocessing
import os
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
import triton
from torch import Tensor
from torch.distributed import destroy_process_group, group, init_process_group

T, D, F, E, K = 96, 32, 48, 6, 2
RANKS = 2


class _FirstConfig:
    """Replaces triton.autotune, which measures kernels on a GPU."""

    def __init__(self, kernel: Any, config: dict[str, Any]) -> None:
        self.kernel, self.config = kernel, config

    def __getitem__(self, grid: Any) -> Any:
        return functools.partial(self.kernel[grid], **self.config)


def _sort(x: Tensor, end_bit: int, x_out: Tensor, iota_out: Tensor) -> None:
    values, order = x.sort(stable=True)
    x_out.copy_(values)
    iota_out.copy_(order)


def _gmm(
    a: Tensor, b: Tensor, batch_sizes: Tensor, trans_a: bool = False, trans_b: bool = False, c: Tensor | None = None
) -> Tensor:
    a_parts = a.split(batch_sizes.tolist())
    if trans_a:
        y = torch.stack([p.t() @ q for p, q in zip(a_parts, b.split(batch_sizes.tolist()), strict=True)])
    else:
        y = torch.cat([p @ (w.t() if trans_b else w) for p, w in zip(a_parts, b, strict=True)])
    return y if c is None else c.copy_(y)


class _Gmm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, batch_sizes: Tensor, trans_b: bool) -> Tensor:
        ctx.save_for_backward(a, b, batch_sizes)
        ctx.trans_b = trans_b
        return _gmm(a, b, batch_sizes, trans_b=trans_b)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        a, b, batch_sizes = ctx.saved_tensors
        (grad,) = grad_outputs
        lhs, rhs = (grad, a) if ctx.trans_b else (a, grad)
        return (
            _gmm(grad, b, batch_sizes, trans_b=not ctx.trans_b),
            _gmm(lhs, rhs, batch_sizes, trans_a=True),
            None,
            None,
        )


def _ops_gmm(a: Tensor, b: Tensor, batch_sizes: Tensor, trans_a: bool = False, trans_b: bool = False) -> Tensor:
    assert not trans_a
    return _Gmm.apply(a, b, batch_sizes, trans_b)  # type: ignore[return-value]


def stand_in() -> None:
    triton.autotune = lambda configs, key: lambda kernel: _FirstConfig(kernel, configs[0].kwargs)
    extension: Any = types.ModuleType("megablocks_ops")
    extension.sort = _sort
    extension.histogram = lambda x, n: torch.bincount(x, minlength=n).int()
    extension.inclusive_cumsum = lambda x, dim, out: out.copy_(x.cumsum(dim))
    grouped: Any = types.ModuleType("grouped_gemm")
    grouped.backend = types.SimpleNamespace(gmm=_gmm)
    grouped.ops = types.SimpleNamespace(gmm=_ops_gmm)
    sys.modules.update({"megablocks_ops": extension, "grouped_gemm": grouped})


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def make_layer(moe_impl: str, recompute: bool = False, n_experts: int = E) -> Any:
    from train.models.config import FFNConfig, ModelConfig
    from train.models.moe import MoE

    ffn = FFNConfig(
        ffn_hidden_size=F, moe_num_experts=n_experts, moe_top_k=K, moe_impl=moe_impl, moe_recompute=recompute
    )
    layer = MoE(ModelConfig(d_model=D, n_heads=4, attn_config=_attn(), ffn_config=ffn))
    torch.manual_seed(1)
    for param in layer.parameters():
        torch.nn.init.normal_(param, std=0.3)
    return layer


def _attn() -> Any:
    from train.models.config import AttnConfig

    return AttnConfig(kv_n_heads=1)


def results(layer: Any, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Return the output, and the gradients of the input and of every trained parameter by name."""
    x = x.clone().requires_grad_()
    y = layer(x)[0]
    y.backward(dy)
    grads = {name: param.grad for name, param in layer.named_parameters() if param.grad is not None}
    return {"y": y.detach(), "x": x.grad, **grads}


def compare(moe_impl: str, x: Tensor, dy: Tensor, frozen: bool = False, recompute: bool = False) -> dict[str, float]:
    ours, reference = make_layer(moe_impl, recompute), make_layer("torch")
    for layer in (ours, reference):
        layer.experts.requires_grad_(not frozen)
        # No token chooses this expert.
        with torch.no_grad():
            layer.router.layer.weight[2] = 0
            layer.router.layer.weight[2, 0] = -1e4
    x = x.clone()
    x[:, 0] = 1.0
    got, expected = results(ours, x, dy), results(reference, x, dy)
    assert got.keys() == expected.keys(), (got.keys(), expected.keys())
    return {name: difference(got[name], expected[name]) for name in expected}


def compare_lora(x: Tensor, dy: Tensor, per_expert: bool) -> dict[str, float]:
    """Compare adapters on MegaBlocks' kernels and grouped GEMM with those on our loop."""
    from train.models.config import LoraConfig
    from train.models.lora.adapters import LoraExperts

    found = []
    for moe_impl in ("megablocks", "torch"):
        layer = make_layer(moe_impl)
        mlp = layer.experts.mlp
        layer.requires_grad_(False)
        lora = LoraConfig(r=8, alpha=16.0, target_modules=["experts"], per_expert=per_expert)
        mlp.lora = LoraExperts(mlp, {"w1", "v1", "w2"}, lora)
        torch.manual_seed(2)
        for param in mlp.lora.parameters():
            torch.nn.init.normal_(param, std=0.3)
        found.append(results(layer, x, dy))
    got, expected = found
    assert got.keys() == expected.keys()
    return {name: difference(got[name], expected[name]) for name in expected}


def compare_expert_parallel(x: Tensor, dy: Tensor) -> dict[str, float]:
    """Compare two ranks, each with half of the tokens and experts, with our loop over all of them."""
    context = multiprocessing.get_context(
        "fork"
    )  # fork, because this process has imported everything and has only one thread
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=_expert_parallel_rank, args=(Path(folder), n, x, dy)) for n in range(RANKS)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        assert [rank.exitcode for rank in ranks] == [0] * RANKS
        parts = [torch.load(Path(folder) / str(n)) for n in range(RANKS)]
    expected = results(make_layer("torch"), x, dy)
    router = "router.layer.weight"
    got = {name: torch.cat([part[name] for part in parts]) for name in expected if name != router}
    got[router] = torch.stack([part[router] for part in parts]).sum(0)
    for name in ("w1", "v1", "w2"):
        got[f"experts.mlp.{name}"] *= RANKS  # each gradient is scaled for a mean over ranks
    return {name: difference(got[name], expected[name]) for name in expected}


def _expert_parallel_rank(folder: Path, rank: int, x: Tensor, dy: Tensor) -> None:
    from train.models.experts.parallel import ExpertParallel

    init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    layer = make_layer("megablocks")
    mlp = layer.experts.mlp
    for name in ("w1", "v1", "w2"):
        setattr(mlp, name, torch.nn.Parameter(getattr(mlp, name).detach().chunk(RANKS)[rank].clone()))
    mlp.parallel = ExpertParallel(group.WORLD, averaged=True)
    torch.save(results(layer, x.chunk(RANKS)[rank], dy.chunk(RANKS)[rank]), folder / str(rank))
    destroy_process_group()


def compare_dmoe(x: Tensor, dy: Tensor) -> dict[str, float]:
    """Run MegaBlocks' own layer, including its router, with our weights: names and shapes are the same."""
    from megablocks.layers.arguments import Arguments
    from megablocks.layers.dmoe import dMoE

    args = Arguments(
        hidden_size=D,
        ffn_hidden_size=F,
        bias=False,
        return_bias=False,
        activation_fn=torch.nn.functional.silu,
        moe_num_experts=E,
        moe_top_k=K,
        moe_normalize_expert_weights=1,
        mlp_type="glu",
        mlp_impl="grouped",
        fp16=False,
        device=torch.device("cpu"),
    )
    ours, theirs = make_layer("torch"), dMoE(args)
    theirs.load_state_dict(ours.state_dict())
    x_theirs = x.clone().requires_grad_()
    y = theirs(x_theirs.unsqueeze(1)).squeeze(1)
    y.backward(dy)
    expected = {"y": y.detach(), "x": x_theirs.grad, **{name: p.grad for name, p in theirs.named_parameters()}}
    got = results(ours, x, dy)
    assert got.keys() == expected.keys()
    return {name: difference(got[name], expected[name]) for name in expected}


def compare_kernels() -> dict[str, float]:
    """Compare the Triton kernels of glu.py with its torch calls in fp64, at a width that is not a multiple of their
    block."""
    from train.models.experts import glu, glu_triton

    A, width = 12, 1300
    dact, h1, h2, y = torch.randn(4, A, width).unbind()
    weights, slots = torch.rand(A), torch.randperm(A).view(4, 3)
    dh2, act, dweights = torch.empty_like(h1), torch.empty_like(h1), torch.empty_like(weights)
    glu_triton.fused_glu(h1, h2, act)
    differences = {"glu": difference(act, glu.glu(h1.double(), h2.double()))}
    expected = glu.glu_backward(dact.double(), h1.double(), h2.double(), weights.double())
    got = (dact, dh2, act, dweights)
    glu_triton.fused_glu_backward(dact, h1, h2, weights, dh2, act, dweights)
    differences |= {f"glu_backward {i}": difference(g, e) for i, (g, e) in enumerate(zip(got, expected, strict=True))}
    for given in (weights.view(4, 3), None):
        got_sum, expected_sum = glu_triton.fused_combine(y, slots, given), glu.combine(y, slots, given)
        differences[f"combine {given is not None}"] = difference(got_sum, expected_sum)
    return differences


def main() -> None:
    sys.path[:0] = sys.argv[1:]
    stand_in()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x, dy = torch.randn(T, D), torch.randn(T, D)
    report = {
        "megablocks": compare("megablocks", x, dy),
        "megablocks, recompute": compare("megablocks", x, dy, recompute=True),
        "megablocks, frozen": compare("megablocks", x, dy, frozen=True),
        "megablocks, one token": compare("megablocks", x[:1], dy[:1]),
        "megablocks, lora": compare_lora(x, dy, per_expert=False),
        "megablocks, lora per expert": compare_lora(x, dy, per_expert=True),
        "megablocks, expert parallel": compare_expert_parallel(x, dy),
        "dMoE": compare_dmoe(x, dy),
        "kernels": compare_kernels(),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
