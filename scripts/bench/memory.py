"""Measures the memory kept between forward and backward, and the time of a step, for each policy of activation
checkpointing, with and without ffn_config.moe_recompute. Also measures the peak memory of the loss, with and without
chunks.

Memory is computed from the sizes of the allocated tensors, so the values are exact and the same on every machine. On a
CPU, CPU time is measured, with one thread by default. All policies run in turn in every round.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import os
from collections.abc import Sequence
from typing import Any

# train.py sets the same variable.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.bench import common
from scripts.bench.watch import Watch
from train.config.schema import FSDPConfig
from train.distributed.build_model import checkpoint_activations
from train.models.dbrx import DbrxForCausalLM
from train.models.init import initialise
from train.models.loss import head_losses

VOCAB_SIZE = 1024
POLICIES = ("none", "selective", "block")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    common.prepare_process(args.threads)
    result = common.description(args) | {"policies": policies(args)}
    none = result["policies"]["none"]
    common.show_table([cells(name, row, none) for name, row in result["policies"].items()])
    if not args.skip_loss:
        result["loss_peak_bytes"] = loss_peaks(args)
        for name, peak in result["loss_peak_bytes"].items():
            sizes = f"{args.loss_tokens:,} tokens and a vocabulary of {args.loss_vocab:,}"
            print(f"peak memory of the loss for {sizes}, {name}: {peak / common.MIB:,.0f} MiB")
    common.write_json(args.json, result)
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    defaults = {"n_layers": 4, "d_model": 512, "ffn_hidden_size": 896, "moe_num_experts": 16, "moe_top_k": 4}
    defaults |= {"rows": 4, "max_seq_len": 512, "rounds": 7, "threads": 1}
    parser = common.make_parser(__doc__, **defaults, loss_tokens=8192, loss_vocab=100352, loss_d_model=64)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--skip_loss", action="store_true", help="omit the loss, which needs 10 GB without chunks")
    return parser.parse_args(argv)


def cells(name: str, row: dict[str, Any], none: dict[str, Any]) -> dict[str, str]:
    return {
        "policy": name,
        "kept MiB": f"{row['kept_bytes'] / common.MIB:.1f}",
        "kept, x none": f"{row['kept_bytes'] / none['kept_bytes']:.2f}",
        "forward + backward s": common.median(row["seconds"]),
        "min-max": common.spread(row["seconds"]),
        "time, x none": f"{common.ratio(row['seconds'], none['seconds']):.2f}",
    }


def policies(args: argparse.Namespace) -> dict[str, Any]:
    ids = torch.randint(0, VOCAB_SIZE, (args.rows, args.max_seq_len), generator=torch.Generator().manual_seed(0))
    ids = ids.to(args.device)
    documents = (torch.arange(args.max_seq_len) * 3 // args.max_seq_len).expand(ids.shape).to(args.device)
    models = {
        policy + (", moe_recompute" if recompute else ""): make_model(args, policy, recompute)
        for recompute in (False, True)
        for policy in POLICIES
    }
    rows: dict[str, Any] = {}
    for name, model in models.items():
        with Watch() as watch:
            loss = model(ids, ids, documents).losses_BS.mean()
        rows[name] = {"kept_bytes": watch.now, "seconds": []}
        loss.backward()
    for order in common.rounds(models, args.rounds):
        for name in order:
            model = models[name]
            model.zero_grad()
            start = common.now(args.device)
            model(ids, ids, documents).losses_BS.mean().backward()
            rows[name]["seconds"].append(common.now(args.device) - start)
    return rows


def make_model(args: argparse.Namespace, policy: Any, recompute: bool) -> DbrxForCausalLM:
    heads = {"n_heads": args.d_model // 64, "kv_n_heads": max(1, args.d_model // 256)}
    config = common.model_config(argparse.Namespace(**vars(args), **heads, vocab_size=VOCAB_SIZE), recompute)
    model = DbrxForCausalLM(config)
    initialise(model, config, seed=0)
    checkpoint_activations(model, FSDPConfig(activation_checkpointing=policy))
    return model.to(args.device)


def loss_peaks(args: argparse.Namespace) -> dict[str, int]:
    """Return the peak memory of the forward and backward passes of the head and the loss, including gradients."""
    T, V, D = args.loss_tokens, args.loss_vocab, args.loss_d_model
    labels = torch.randint(0, V, (1, T), device=args.device)
    place = torch.arange(T, device=args.device)

    def plain(x: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(x @ weight.t(), labels[0])

    def chunked(x: Tensor, weight: Tensor) -> Tensor:
        return head_losses(x, weight, labels, place)[0].mean()

    peaks = {}
    for function in (chunked, plain):
        x, weight = (torch.randn(n, D, device=args.device, requires_grad=True) for n in (T, V))
        with Watch() as watch:
            function(x, weight).backward()
        peaks[function.__name__] = watch.peak
    return peaks


if __name__ == "__main__":
    sys.exit(main())
