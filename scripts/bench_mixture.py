"""What planning rows costs, in time and memory, and how fast a loader is with one stream and with several.

Planning is of one global batch somewhere in the run: at its beginning, in its middle (where the mix is a ramp) and at
its end, each in a fresh plan (cold, which sets up tables of the shards) and the batches after it (warm).
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from data.base.durations import Clock
from data.config.schema import (
    DataLoaderConfig,
    DatasetConfig,
    StageConfig,
    StreamConfig,
    TokenizerConfig,
    TokenizerKwargs,
)
from data.mixing.curriculum import RowPlan

ROOT = Path(__file__).resolve().parents[1]
SHARD_ROWS = 8192


@dataclasses.dataclass(frozen=True)
class Shape:
    """A stream of rows that are never read."""

    n_rows: int
    tokens: int
    fingerprint: str = ""

    @property
    def shard_sizes(self) -> np.ndarray:
        whole, rest = divmod(self.n_rows, SHARD_ROWS)
        return np.array([SHARD_ROWS] * whole + [rest] * (rest > 0))


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    result: dict[str, Any] = {"settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}}
    result["planning"] = planning(args)
    columns = ("rows", "streams", "shards", "cold ms", "warm ms", "min-max", "peak MiB")
    print("".join(f"{column:>14}" for column in columns))
    for row in result["planning"]:
        warm = row["warm_ms"]
        spread = f"{min(warm):.2f}-{max(warm):.2f}"
        print(
            f"{row['rows']:>14,}{row['streams']:>14}{row['shards']:>14,}{max(row['cold_ms']):>14.1f}"
            f"{statistics.median(warm):>14.2f}{spread:>14}{row['peak_bytes'] / 2**20:>14.2f}"
        )
    result["loading"] = loading(args)
    one = result["loading"]["1"]
    print(f"\n{'streams':>14}{'M tokens/s':>14}{'min-max':>14}{'of one':>14}")
    for name, rates in result["loading"].items():
        ratio = statistics.median(a / b for a, b in zip(rates, one, strict=True))
        spread = f"{min(rates) / 1e6:.2f}-{max(rates) / 1e6:.2f}"
        print(f"{name:>14}{statistics.median(rates) / 1e6:>14.2f}{spread:>14}{ratio:>14.2f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10**4, 10**6, 10**9], help="rows of a run")
    parser.add_argument("--streams", type=int, nargs="+", default=[2, 10, 100])
    for name, default in {"batch": 1024, "rounds": 7, "load_rows": 4000, "load_batch": 32, "max_seq_len": 2048}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser.parse_args(argv)


def planning(args: argparse.Namespace) -> list[dict[str, Any]]:
    return [plan_once(args, n_rows, n_streams) for n_rows in args.rows for n_streams in args.streams]


def plan_once(args: argparse.Namespace, n_rows: int, n_streams: int) -> dict[str, Any]:
    config, streams = mixture(n_rows, n_streams)
    n_batches = max(n_rows // args.batch, 3)
    places = [0, n_batches // 2, n_batches - 1]
    shards = sum(len(stream.shard_sizes) for stream in streams.values())

    def from_nothing(place: int) -> None:
        make(config, streams, n_batches, args).rows(place, 0, args.batch)

    cold = [timed(from_nothing, place) for place in places]
    tracemalloc.start()
    from_nothing(places[1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    plan = make(config, streams, n_batches, args)
    warm = []
    for place in places:
        plan.rows(place, 0, args.batch)
        # Those after it: what was planned already would be looked up.
        warm += [timed(plan.rows, place + 1 + number, 0, args.batch) for number in range(args.rounds)]
    return {
        "rows": n_rows,
        "streams": n_streams,
        "shards": shards,
        "cold_ms": cold,
        "warm_ms": warm,
        "peak_bytes": peak,
    }


def mixture(n_rows: int, n_streams: int) -> tuple[DataLoaderConfig, dict[str, Shape]]:
    """A ramp between two mixes around streams of very different sizes, which together have half of the run's rows; the
    rows of one stream hold up to 100 times the tokens of another's."""
    rng = np.random.default_rng(0)
    names = [f"s{number}" for number in range(n_streams)]
    sizes = rng.dirichlet(np.full(n_streams, 0.5)) * n_rows / 2
    rows = [max(int(size), 1) for size in sizes]
    means = np.exp(rng.uniform(np.log(20), np.log(2000), n_streams))
    streams = {name: Shape(n, int(n * mean)) for name, n, mean in zip(names, rows, means, strict=True)}
    start, end = (dict(zip(names, (sizes * rng.uniform(0.2, 1, n_streams)).tolist(), strict=True)) for _ in range(2))
    dataset = DatasetConfig(
        streams={name: StreamConfig(local=name, max_repeats=float(n_rows)) for name in names}, max_seq_len=2
    )
    stages = [
        StageConfig(name="first", duration="0.25dur", proportions=dict(start)),
        StageConfig(name="ramp", duration="0.5dur", proportions={"from": start, "to": end}),
    ]
    return DataLoaderConfig(name="text", dataset=dataset, stages=stages), streams


def make(config: DataLoaderConfig, streams: Any, n_batches: int, args: argparse.Namespace) -> RowPlan:
    clock = Clock(tokens_per_batch=args.batch * 2, rows_per_batch=args.batch, rows_per_epoch=1)
    return RowPlan(config, streams, clock.until(f"{n_batches}ba"), seed=17)


def timed(function: Any, *arguments: Any) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    function(*arguments)
    return (time.perf_counter() - start) * 1e3


def loading(args: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens a second of one loader without workers, over as many rows in 1 and in 10 streams, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        loaders = {str(n): loader(Path(folder) / str(n), n, args) for n in (1, 10)}
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        for _ in range(args.rounds):
            for name, batches in loaders.items():
                start, tokens = time.perf_counter(), 0
                for batch in batches:
                    tokens += batch["input_ids"].numel()
                rates[name].append(tokens / (time.perf_counter() - start))
    return rates


def loader(folder: Path, n_streams: int, args: argparse.Namespace) -> Any:
    from streaming import MDSWriter

    from data.loading.loader import train_loader
    from data.loading.rows import open_streams
    from data.mds.folder import COLUMNS
    from data.tokenization.tokenizer import build_tokenizer

    rng = np.random.default_rng(0)
    for number in range(n_streams):
        with MDSWriter(columns=COLUMNS, out=str(folder / str(number)), hashes=["xxh64"], size_limit=4 << 20) as writer:
            for _ in range(args.load_rows // n_streams):
                tokens = rng.integers(0, 256, args.max_seq_len).astype(np.int32)
                mask, lengths = np.ones(len(tokens), np.uint8), np.array([len(tokens)], np.int32)
                writer.write({"tokens": tokens, "loss_mask": mask, "lengths": lengths})
    streams = {str(number): StreamConfig(local=str(folder / str(number))) for number in range(n_streams)}
    dataset = DatasetConfig(streams=streams, max_seq_len=args.max_seq_len, cache_dir=str(folder / "cache"))
    config = DataLoaderConfig(name="text", dataset=dataset, num_workers=0)
    vocab = TokenizerKwargs(vocab_file=str(ROOT / "quickstart" / "vocab.tiktoken"))
    opened = open_streams(dataset, build_tokenizer(TokenizerConfig(name="tiktoken", kwargs=vocab)))
    size = args.load_batch
    n_batches = args.load_rows // size
    clock = Clock(tokens_per_batch=size * args.max_seq_len, rows_per_batch=size, rows_per_epoch=args.load_rows)
    plan = RowPlan(config, opened, clock.until(f"{n_batches}ba"), seed=17)
    return train_loader(opened, config, plan, n_batches=n_batches, rank=0, world_size=1, pad_token_id=0)


if __name__ == "__main__":
    sys.exit(main())
