"""What is kept between forward and backward and what a step costs, for each policy of activation checkpointing, with
and without ffn_config.moe_recompute; and the most that the loss has in memory, by chunks and plainly.

Bytes are those of the tensors that are alive, exact and the same on every machine. On a CPU one thread computes and its
own CPU time is measured; all policies run in turn in every round.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# As train.py does.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

import torch
import torch.nn.functional as F
from torch import Tensor

from train.config.schema import FSDPConfig
from train.distributed.build_model import checkpoint_activations
from train.hardware.allocator import keep_freed_memory
from train.models.config import AttnConfig, FFNConfig, ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.init import initialise
from train.models.loss import head_losses
from train.watch import Watch

POLICIES = ("none", "selective", "block")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    # As train/run/trainer.py does.
    keep_freed_memory()
    result = {"settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}}
    result["policies"] = policies(args)
    print(f"{'policy':<26}{'kept MiB':>10}{'of none':>9}{'forward + backward s':>22}{'min-max':>14}{'of none':>9}")
    none = result["policies"]["none"]
    for name, row in result["policies"].items():
        spread = f"{min(row['seconds']):.2f}-{max(row['seconds']):.2f}"
        slower = statistics.median(a / b for a, b in zip(row["seconds"], none["seconds"], strict=True))
        kept, of_none = row["kept_bytes"] / 2**20, row["kept_bytes"] / none["kept_bytes"]
        print(
            f"{name:<26}{kept:>10.1f}{of_none:>9.2f}{statistics.median(row['seconds']):>22.2f}{spread:>14}{slower:>9.2f}"
        )
    if not args.skip_loss:
        result["loss_peak_bytes"] = loss_peaks(args)
        for name, peak in result["loss_peak_bytes"].items():
            print(
                f"loss of {args.loss_tokens:,} tokens, vocabulary {args.loss_vocab:,}, {name}: {peak / 2**20:,.0f} MiB"
            )
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    defaults = {"n_layers": 4, "d_model": 512, "ffn_hidden_size": 896, "moe_num_experts": 16, "moe_top_k": 4}
    defaults |= {"rows": 4, "max_seq_len": 512, "rounds": 7, "threads": 1, "loss_tokens": 8192, "loss_vocab": 100352}
    for name, default in (defaults | {"loss_d_model": 64}).items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--skip_loss", action="store_true", help="the plain loss needs 10 GB")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser.parse_args(argv)


def policies(args: argparse.Namespace) -> dict[str, Any]:
    ids = torch.randint(0, 1024, (args.rows, args.max_seq_len), generator=torch.Generator().manual_seed(0))
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
    for _ in range(args.rounds):
        for name, model in models.items():
            model.zero_grad()
            start = now(args)
            model(ids, ids, documents).losses_BS.mean().backward()
            rows[name]["seconds"].append(now(args) - start)
    return rows


def make_model(args: argparse.Namespace, policy: Any, recompute: bool) -> DbrxForCausalLM:
    config = ModelConfig(
        d_model=args.d_model,
        n_heads=args.d_model // 64,
        n_layers=args.n_layers,
        max_seq_len=args.max_seq_len,
        vocab_size=1024,
        attn_config=AttnConfig(kv_n_heads=max(1, args.d_model // 256)),
        ffn_config=FFNConfig(
            ffn_hidden_size=args.ffn_hidden_size,
            moe_num_experts=args.moe_num_experts,
            moe_top_k=args.moe_top_k,
            moe_recompute=recompute,
        ),
    )
    model = DbrxForCausalLM(config)
    initialise(model, config, seed=0)
    checkpoint_activations(model, FSDPConfig(activation_checkpointing=policy))
    return model.to(args.device)


def now(args: argparse.Namespace) -> float:
    if args.device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def loss_peaks(args: argparse.Namespace) -> dict[str, int]:
    """The most that forward and backward of head and loss have in memory at once, the gradients included."""
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
