"""Memory and time of training a tiny DBRX on one long row: one document in it, or many.

Every figure comes from a process of its own: its peak resident memory, less what it had after building the model and
one step on a short row. Memory is linear when it doubles with the row.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SHORTEST, LONGEST = 32, 480  # tokens of one of many documents


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    lengths = (4096, 8192, 16384, 32768)
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths, help="of the rows, in tokens")
    parser.add_argument("--steps", type=int, default=1, help="on the same row; the time is the last one's (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument("--attn_impl", default="auto", help="default: auto")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    parser.add_argument("--measure", choices=("one", "many"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(measure(args.lengths[0], args.measure, args.steps, args.threads, args.attn_impl)))
        return 0
    common = ["--steps", str(args.steps), "--threads", str(args.threads), "--attn_impl", args.attn_impl]
    print(f"{'row':>7} {'documents':>9} {'peak MiB':>9} {'KiB/token':>9} {'seconds':>8} {'loss':>15}", flush=True)
    rows = []
    for kind in ("one", "many"):
        for length in args.lengths:
            command = [sys.executable, __file__, "--measure", kind, "--lengths", str(length), *common]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                return done.returncode
            rows.append(json.loads(done.stdout))
            print(_line(rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _line(row: dict[str, Any]) -> str:
    mib, per_token = row["peak_bytes"] / 2**20, row["peak_bytes"] / 2**10 / row["tokens"]
    losses = " -> ".join(f"{loss:.2f}" for loss in dict.fromkeys((row["losses"][0], row["losses"][-1])))
    return (
        f"{row['tokens']:>7,} {row['documents']:>9} {mib:>9.0f} {per_token:>9.1f} {row['seconds']:>8.1f} {losses:>15}"
    )


def measure(length: int, kind: str, steps: int, threads: int, attn_impl: str) -> dict[str, Any]:
    """Trains on one row of this many tokens in this process, whose peak memory must not have been used before."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    import torch

    from train.models.config import PRESETS, AttnConfig, FFNConfig, ModelConfig
    from train.models.dbrx import DbrxForCausalLM
    from train.models.init import initialise

    torch.set_num_threads(threads)
    tiny = dict(PRESETS["tiny"])
    attn = AttnConfig(**{**tiny.pop("attn_config"), "attn_impl": attn_impl})
    ffn = FFNConfig(**tiny.pop("ffn_config"))
    config = ModelConfig(**{**tiny, "max_seq_len": length}, attn_config=attn, ffn_config=ffn)
    model = DbrxForCausalLM(config)
    initialise(model, config, 0)
    generator = torch.Generator().manual_seed(0)

    def step(lengths: list[int]) -> float:
        documents = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
        # Counting up from a random token: something to learn, so that the loss says that training works.
        first = torch.randint(config.vocab_size, (1,), generator=generator)
        ids = (first + torch.arange(documents.shape[1])[None]) % config.vocab_size
        losses = model(ids, (ids + 1) % config.vocab_size, documents).losses_BS
        losses.mean().backward()
        # SGD by hand: torch.optim brings torch's compiler along, seconds for each of the processes.
        with torch.no_grad():
            for param in model.parameters():
                assert param.grad is not None
                param.sub_(param.grad, alpha=0.1)
                param.grad = None
        return losses.mean().item()

    # What the libraries need the first time is no row's, and neither are the weights.
    step([min(64, length)])
    before = _peak_bytes()
    lengths = [length] if kind == "one" else _many(length)
    losses, seconds = [], 0.0
    for _ in range(steps):
        start = time.perf_counter()
        losses.append(step(lengths))
        seconds = time.perf_counter() - start
    peak = _peak_bytes() - before
    return {
        "tokens": length,
        "documents": len(lengths),
        "longest": max(lengths),
        "peak_bytes": peak,
        "seconds": seconds,
        "losses": losses,
        "attn_impl": attn_impl,
        "threads": threads,
        "torch": torch.__version__,
    }


def _many(length: int) -> list[int]:
    draw, lengths = random.Random(0), []
    while (left := length - sum(lengths)) > 0:
        lengths.append(min(draw.randint(SHORTEST, LONGEST), left))
    return lengths


def _peak_bytes() -> int:
    """The process's peak resident memory; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main())
