"""Measures the time and memory of planning rows, and the throughput of a data loader with one stream and with several
streams.

A global batch is planned at the beginning of the run, in the middle of the run (within a ramp) and at the end of the
run. The first batch of a new plan is "cold", because the plan then builds its tables of the shards. Later batches are
"warm".
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import dataclasses
import tempfile
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.base.durations import Clock
from data.config.dataset import DatasetConfig, StreamConfig
from data.config.loader import DataLoaderConfig, StageConfig
from data.config.tokenizer import TokenizerConfig, TokenizerKwargs
from data.mixing.row_plan import RowPlan
from scripts.bench import common

SHARD_ROWS = 8192


@dataclasses.dataclass(frozen=True)
class Shape:
    """A stream with n_rows rows, which are never read."""

    n_rows: int
    tokens: int
    fingerprint: str = ""

    @property
    def shard_sizes(self) -> np.ndarray:
        whole, rest = divmod(self.n_rows, SHARD_ROWS)
        return np.array([SHARD_ROWS] * whole + [rest] * (rest > 0))


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    result = common.description(args) | {"planning": planning(args)}
    common.show_table([planning_cells(row) for row in result["planning"]])
    result["loading"] = loading(args)
    print()
    one = result["loading"]["1"]
    common.show_table([loading_cells(name, rates, one) for name, rates in result["loading"].items()])
    common.write_json(args.json, result)
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = common.make_parser(__doc__, batch=1024, rounds=7, load_rows=4000, load_batch=32, max_seq_len=2048)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[10**4, 10**6, 10**9], help="lengths of the runs, in rows"
    )
    parser.add_argument("--streams", type=int, nargs="+", default=[2, 10, 100])
    return parser.parse_args(argv)


def planning_cells(row: dict[str, Any]) -> dict[str, str]:
    return {
        "rows": f"{row['rows']:,}",
        "streams": str(row["streams"]),
        "shards": f"{row['shards']:,}",
        "cold ms": f"{max(row['cold_ms']):.1f}",
        "warm ms": common.median(row["warm_ms"]),
        "min-max": common.spread(row["warm_ms"]),
        "peak MiB": f"{row['peak_bytes'] / common.MIB:.2f}",
    }


def loading_cells(streams: str, rates: list[float], one: list[float]) -> dict[str, str]:
    return {
        "streams": streams,
        "M tokens/s": common.median(rates, scale=1e-6),
        "min-max": common.spread(rates, scale=1e-6),
        "of one": f"{common.ratio(rates, one):.2f}",
    }


def planning(args: argparse.Namespace) -> list[dict[str, Any]]:
    return [plan_once(args, n_rows, n_streams) for n_rows in args.rows for n_streams in args.streams]


def plan_once(args: argparse.Namespace, n_rows: int, n_streams: int) -> dict[str, Any]:
    config, streams = mixture(n_rows, n_streams)
    n_batches = max(n_rows // args.batch, 3)
    places = [0, n_batches // 2, n_batches - 1]
    shards = sum(len(stream.shard_sizes) for stream in streams.values())

    def from_nothing(place: int) -> None:
        make(config, streams, n_batches, args).rows(place, 0, args.batch)

    cold = [1e3 * common.wall_seconds(from_nothing, place) for place in places]
    tracemalloc.start()
    from_nothing(places[1])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    plan = make(config, streams, n_batches, args)
    warm = []
    for place in places:
        plan.rows(place, 0, args.batch)
        # Later batches are timed, because the rows of a batch that was already planned would only be looked up.
        later = range(place + 1, place + 1 + args.rounds)
        warm += [1e3 * common.wall_seconds(plan.rows, number, 0, args.batch) for number in later]
    return {
        "rows": n_rows,
        "streams": n_streams,
        "shards": shards,
        "cold_ms": cold,
        "warm_ms": warm,
        "peak_bytes": peak,
    }


def mixture(n_rows: int, n_streams: int) -> tuple[DataLoaderConfig, dict[str, Shape]]:
    """A mixture of streams of very different sizes, with a ramp between two sets of proportions. Together, the streams
    have half of the rows that the run needs. The number of tokens per row differs between streams by up to a factor of
    100."""
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


def loading(args: argparse.Namespace) -> dict[str, list[float]]:
    """Measure the tokens per second of a loader without workers. The same number of rows is loaded from 1 stream and
    from 10 streams. The two cases are timed alternately."""
    with tempfile.TemporaryDirectory() as folder:
        loaders = {str(n): loader(Path(folder) / str(n), n, args) for n in (1, 10)}
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        for order in common.rounds(loaders, args.rounds):
            for name in order:
                rates[name].append(common.tokens_per_second(loaders[name]))
    return rates


def loader(folder: Path, n_streams: int, args: argparse.Namespace) -> Any:
    from data.loading.loader import train_loader
    from data.loading.opening import open_streams
    from data.tokenization.build import build_tokenizer

    write_streams(folder, n_streams, args)
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


def write_streams(folder: Path, n_streams: int, args: argparse.Namespace) -> None:
    from streaming import MDSWriter

    from data.mds.row import COLUMNS

    rng = np.random.default_rng(0)
    for number in range(n_streams):
        with MDSWriter(columns=COLUMNS, out=str(folder / str(number)), hashes=["xxh64"], size_limit=4 << 20) as writer:
            for _ in range(args.load_rows // n_streams):
                tokens = rng.integers(0, 256, args.max_seq_len).astype(np.int32)
                mask, lengths = np.ones(len(tokens), np.uint8), np.array([len(tokens)], np.int32)
                writer.write({"tokens": tokens, "loss_mask": mask, "lengths": lengths})


if __name__ == "__main__":
    sys.exit(main())
