"""Compares LoRA with full fine-tuning. Adapters are on attention, on experts, or on both, and the base weights are in
fp32, bf16 or 4 bits. Measures the time of a training step, the memory kept between steps, the peak memory added by a
step, and the loss.

All variants start from the same model, which was trained on random sequences that follow one permutation of the tokens.
The sequences on which the variants are trained follow another permutation. All variants run in turn in every round, in
one process, which is the only rank of FSDP2. Ratios are computed per round. Memory is computed from the sizes of the
allocated tensors. On a CPU, CPU time is measured, with one thread by default.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore
from torch.distributed.tensor import DTensor

from scripts.bench import common
from scripts.bench.watch import Watch
from train.config.schema import FSDPConfig
from train.distributed.build_model import build_model
from train.models.config import LoraConfig
from train.models.recompute import named_parameters

FULL = "full"
BF16 = "attention and experts"


def variants(args: argparse.Namespace) -> dict[str, LoraConfig | None]:
    def lora(targets: str, base_dtype: Any = "bf16", per_expert: bool = False) -> LoraConfig:
        shape: Any = {"r": args.r, "alpha": 2 * args.r, "per_expert": per_expert, "base_dtype": base_dtype}
        return LoraConfig(target_modules=targets.split(), **shape)

    both = "attn experts"
    return {
        FULL: None,
        "attention": lora("attn"),
        "experts": lora("experts"),
        BF16: lora(both),
        "  per_expert": lora(both, per_expert=True),
        "  fp32 base": lora(both, "fp32"),
        "  nf4 base": lora(both, "nf4"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    common.prepare_process(args.threads)
    backend = "nccl" if args.device == "cuda" else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        rows = measure(args)
    finally:
        dist.destroy_process_group()
    show(rows)
    common.write_json(args.json, common.description(args) | {"sides": rows})
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    defaults = {"n_layers": 4, "d_model": 512, "n_heads": 8, "kv_n_heads": 2, "ffn_hidden_size": 896}
    defaults |= {"moe_num_experts": 16, "moe_top_k": 4, "vocab_size": 4096, "rows": 4, "max_seq_len": 512, "r": 16}
    parser = common.make_parser(__doc__, **defaults, first_steps=20, rounds=7, threads=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "amp_bf16"])
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    base = first_weights(args)
    steps = {name: Variant(args, lora, base) for name, lora in variants(args).items()}
    rows: dict[str, dict[str, Any]] = {
        name: {"seconds": [], "losses": [variant.step()], "state_bytes": variant.state_bytes}
        for name, variant in steps.items()
    }
    for name, variant in steps.items():
        with Watch() as watch:
            rows[name]["losses"].append(variant.step())
        rows[name]["peak_bytes"] = watch.peak
    for order in common.rounds(steps, args.rounds):
        for name in order:
            start = common.now(args.device)
            rows[name]["losses"].append(steps[name].step())
            rows[name]["seconds"].append(common.now(args.device) - start)
    return rows


def first_weights(args: argparse.Namespace) -> "Kept":
    """Return the weights of a model that was trained on the first permutation."""
    variant = Variant(args, None, None, chain_seed=1)
    for _ in range(args.first_steps):
        variant.step()
    return Kept({name: whole(param).float().cpu() for name, param in named_parameters(variant.model)})


class Kept:
    """Weights that are kept in memory. Implements the protocol train.distributed.build_model.Weights."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def rows(self, name: str, start: int, stop: int, out: Tensor) -> None:
        out.copy_(self.tensors[name][start:stop])


class Variant:
    """A model, its optimizer and its batches. The batches depend only on the args and on chain_seed."""

    def __init__(
        self, args: argparse.Namespace, lora: LoraConfig | None, base: Kept | None, chain_seed: int = 2
    ) -> None:
        self.args, self.next_batch = args, chain(args, chain_seed)
        self.model = build_model(
            common.model_config(args),
            FSDPConfig(),
            precision=args.precision,
            device=torch.device(args.device),
            seed=0,
            pretrained=base,
            lora=lora,
        )
        trained = [param for param in self.model.parameters() if param.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-3 if lora is None else 4e-3, fused=True)

    def step(self) -> float:
        """Run forward, backward and the optimizer's step, and return the loss."""
        ids = self.next_batch()
        with torch.autocast(self.args.device, torch.bfloat16, enabled=self.args.precision == "amp_bf16"):
            losses_BS = self.model(ids[:, :-1], ids[:, 1:]).losses_BS
        loss = losses_BS.mean()
        loss.backward()
        self.optimizer.step()
        params = list(self.model.parameters())
        moments = [value for state in self.optimizer.state.values() for value in state.values() if value.ndim]
        grads = [param.grad for param in params if param.grad is not None]
        self.state_bytes = sum(map(n_bytes, [*params, *grads, *moments]))
        self.optimizer.zero_grad()
        return float(loss.detach())


def chain(args: argparse.Namespace, seed: int) -> Callable[[], Tensor]:
    """Return a function that generates batches of rows, in which most tokens determine the next token through a
    permutation."""
    draw = torch.Generator().manual_seed(seed)
    follows = torch.randperm(args.vocab_size, generator=draw)

    def batch() -> Tensor:
        columns = [torch.randint(args.vocab_size, (args.rows,), generator=draw)]
        for _ in range(args.max_seq_len):
            chance = torch.rand(args.rows, generator=draw) < 0.1
            other = torch.randint(args.vocab_size, (args.rows,), generator=draw)
            columns.append(torch.where(chance, other, follows[columns[-1]]))
        return torch.stack(columns, dim=1).to(args.device)

    return batch


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor.detach()


def n_bytes(tensor: Tensor) -> int:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.numel() * local.element_size()


def show(rows: dict[str, dict[str, Any]]) -> None:
    common.show_table([cells(name, row, rows[FULL]) for name, row in rows.items()])
    nf4, bf16 = rows["  nf4 base"]["losses"], rows[BF16]["losses"]
    more = f"{nf4[0] - bf16[0]:+.4f} in the first step, {nf4[-1] - bf16[-1]:+.4f} in the last step"
    print(f"loss with the 4-bit base minus loss with the bf16 base: {more}")


def cells(name: str, row: dict[str, Any], full: dict[str, Any]) -> dict[str, str]:
    return {
        "adapters on": name,
        "s": common.median(row["seconds"]),
        "min-max": common.spread(row["seconds"]),
        "x full": f"{common.ratio(row['seconds'], full['seconds']):.2f}",
        "states MiB": f"{row['state_bytes'] / common.MIB:.1f}",
        "added by a step, MiB": f"{row['peak_bytes'] / common.MIB:.1f}",
        "first loss": f"{row['losses'][0]:.3f}",
        "last loss": f"{row['losses'][-1]:.3f}",
    }


if __name__ == "__main__":
    sys.exit(main())
