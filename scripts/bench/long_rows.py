"""Measures the memory and time of training a tiny DBRX on one long row, which contains one document or many documents.

Every measurement runs in a separate process. The reported memory is the peak resident memory of this process, minus the
peak that the process had reached after building the model and running one step on a short row. The memory is linear in
the row length if it doubles when the length doubles.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import json
import random
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

from scripts.bench import common

SHORTEST, LONGEST = 32, 480  # tokens per document, if a row contains many documents


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.measure:
        print(json.dumps(measure(args.lengths[0], args.measure, args.steps, args.threads, args.attn_impl)))
        return 0
    flags = ["--steps", str(args.steps), "--threads", str(args.threads), "--attn_impl", args.attn_impl]
    rows = []
    for kind in ("one", "many"):
        for length in args.lengths:
            print(f"{length:,} tokens, {kind}", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, "--measure", kind, "--lengths", str(length), *flags]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                return done.returncode
            rows.append(json.loads(done.stdout))
    common.show_table([cells(row) for row in rows])
    common.write_json(args.json, rows)
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = common.make_parser(__doc__)
    lengths = (4096, 8192, 16384, 32768)
    parser.add_argument("--lengths", type=int, nargs="+", default=lengths, help="lengths of the rows, in tokens")
    parser.add_argument(
        "--steps", type=int, default=1, help="number of steps on the same row; the last step is timed (default: 1)"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch's number of threads (default: 1)")
    parser.add_argument("--attn_impl", default="auto", help="default: auto")
    parser.add_argument("--measure", choices=("one", "many"), help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def cells(row: dict[str, Any]) -> dict[str, str]:
    return {
        "row": f"{row['tokens']:,}",
        "documents": str(row["documents"]),
        "peak MiB": f"{row['peak_bytes'] / common.MIB:.0f}",
        "KiB/token": f"{row['peak_bytes'] / 2**10 / row['tokens']:.1f}",
        "seconds": f"{row['seconds']:.1f}",
        "loss": " -> ".join(f"{loss:.2f}" for loss in dict.fromkeys((row["losses"][0], row["losses"][-1]))),
    }


def measure(length: int, kind: str, steps: int, threads: int, attn_impl: str) -> dict[str, Any]:
    """Train on one row of `length` tokens, and return the measured values. Must be called in a new process, because the
    peak memory of a process includes the memory of everything that the process did before."""
    import torch

    torch.set_num_threads(threads)
    step = make_step(length, attn_impl)
    # A first step is run, so that the weights and the memory that libraries allocate on first use are not counted.
    step([min(64, length)])
    before = common.peak_bytes()
    lengths = [length] if kind == "one" else many(length)
    losses: list[float] = []
    seconds = [common.wall_seconds(lambda: losses.append(step(lengths))) for _ in range(steps)]
    return {
        "tokens": length,
        "documents": len(lengths),
        "longest": max(lengths),
        "peak_bytes": common.peak_bytes() - before,
        "seconds": seconds[-1],
        "losses": losses,
        "attn_impl": attn_impl,
        "threads": threads,
        "torch": torch.__version__,
    }


def make_step(max_seq_len: int, attn_impl: str) -> Callable[[list[int]], float]:
    """Return a function that trains on one row, with documents of the given lengths, and returns the loss before the
    update."""
    import torch

    from train.models.config import PRESETS, AttnConfig, FFNConfig, ModelConfig
    from train.models.dbrx import DbrxForCausalLM
    from train.models.init import initialise

    tiny = dict(PRESETS["tiny"])
    attn = AttnConfig(**{**tiny.pop("attn_config"), "attn_impl": attn_impl})
    ffn = FFNConfig(**tiny.pop("ffn_config"))
    config = ModelConfig(**{**tiny, "max_seq_len": max_seq_len}, attn_config=attn, ffn_config=ffn)
    model = DbrxForCausalLM(config)
    initialise(model, config, 0)
    generator = torch.Generator().manual_seed(0)

    def step(lengths: list[int]) -> float:
        documents = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))[None]
        # The ids are consecutive numbers that start from a random id. This pattern can be learned, so a decreasing loss
        # shows that training works.
        first = torch.randint(config.vocab_size, (1,), generator=generator)
        ids = (first + torch.arange(documents.shape[1])[None]) % config.vocab_size
        losses = model(ids, (ids + 1) % config.vocab_size, documents).losses_BS
        losses.mean().backward()
        # SGD is implemented without torch.optim, because torch.optim imports torch's compiler, which takes several
        # seconds in each process.
        with torch.no_grad():
            for param in model.parameters():
                assert param.grad is not None
                param.sub_(param.grad, alpha=0.1)
                param.grad = None
        return losses.mean().item()

    return step


def many(length: int) -> list[int]:
    draw, lengths = random.Random(0), []
    while (left := length - sum(lengths)) > 0:
        lengths.append(min(draw.randint(SHORTEST, LONGEST), left))
    return lengths


if __name__ == "__main__":
    sys.exit(main())
