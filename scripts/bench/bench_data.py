"""Times the preparation and loading of training data: preparing rows, loading them, and resuming at a row in the
middle.

The text is the source code of Python's standard library, shuffled and repeated. Preparation is measured with tiktoken
and, if it is installed and supports the vocabulary, with quicktok. It is compared with tiktoken alone in CPU seconds of
all processes, which other programs hardly affect. It is compared with `datasets.map` and `MDSWriter` in one process,
and with Streaming's `dataframe_to_mds` on Spark with two workers, in wall-clock seconds. All variants run in every
round, and ratios are computed per round.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import psutil

from scripts.bench import common
from scripts.bench.data_variants import (
    SPARK,
    STOCK,
    TIKTOKEN,
    Variant,
    make_config,
    make_tokenizer,
    make_variants,
    prepare,
)
from scripts.bench.spark_variant import SparkVariant, why_not
from scripts.bench.stdlib_text import make_vocabulary, write_text

if TYPE_CHECKING:
    from data.config.dataset import DatasetConfig

GIGABYTE = 10**9
RESUME_AT = (10, 10_000, 1_000_000)
SHORT_ROW = 16
"""Number of tokens per row in measurements that need a million rows."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    report = common.description(args)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        if args.vocab_file is None and args.encoding_name is None:
            args.vocab_file = folder / "vocab.tiktoken"
            make_vocabulary(args.vocab_file, args.vocab_size)
        if args.gigabyte:  # measured first, so that the memory of later imports is not counted
            report["gigabyte"] = common.in_fresh_process(prepare_gigabyte, args, folder)
        report["prepare"] = compare_preparation(args, folder)
        report["load"] = load(args, folder)
        if args.rows:
            report["resume"] = resume(args, folder)
    show(report)
    common.write_json(args.json, report)
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = common.make_parser(__doc__, vocab_size=32768, max_seq_len=2048, rounds=3, batch=8)
    what = "a tiktoken vocabulary, such as quickstart/vocab.tiktoken (default: a vocabulary learned from the text)"
    parser.add_argument("--vocab_file", type=Path, help=what)
    parser.add_argument("--encoding_name", help="measure this encoding of tiktoken, such as cl100k_base")
    parser.add_argument("--megabytes", type=float, default=40, help="size of the text to prepare; default: %(default)s")
    parser.add_argument("--workers", type=int, help="number of worker processes; default: one per core")
    what = "number of rows of the dataset on which resuming is timed; 0 skips this part; default: %(default)s"
    parser.add_argument("--rows", type=int, default=RESUME_AT[-1] + 1024, help=what)
    parser.add_argument("--gigabyte", action="store_true", help="also prepare 1 GB and measure the peak memory")
    parser.add_argument("--folder", type=Path, help="folder for all files (default: the system's temporary folder)")
    args = parser.parse_args(argv)
    if args.vocab_file is not None and not args.vocab_file.is_file():
        parser.error(f"--vocab_file is {args.vocab_file}, but there is no such file")
    from data.base.workers import all_cores

    args.workers = args.workers or all_cores()
    return args


def compare_preparation(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    file = folder / "text.jsonl"
    write_text(file, args.megabytes * 1e6)
    manifests, variants = make_variants(args, file)
    not_run = {SPARK: reason} if (reason := why_not()) else {}
    spark = None
    if not not_run:
        spark = SparkVariant(file, folder, make_tokenizer(args, fast=False), args.max_seq_len)
        variants[SPARK] = spark
    times: dict[str, Any] = {name: {"seconds": [], "cpu_seconds": []} for name in variants}
    for number, order in enumerate(common.rounds(variants, args.rounds)):
        for name in order:
            if spark is not None and name == SPARK:
                spark.warm_up()
            seconds, cpu_seconds = timed(variants[name], folder / f"{name}-{number}")
            times[name]["seconds"].append(seconds)
            times[name]["cpu_seconds"].append(cpu_seconds)
    if spark is not None:
        spark.stop()
    manifest = manifests[0]
    for row in times.values():
        row["tokens_per_s_and_core"] = [manifest["tokens_in"] / seconds for seconds in row["cpu_seconds"]]
        row["of tiktoken alone"] = common.ratio(times[TIKTOKEN]["cpu_seconds"], row["cpu_seconds"])
        row["x stock"] = common.ratio(times[STOCK]["seconds"], row["seconds"])
        row["x Spark"] = common.ratio(times[SPARK]["seconds"], row["seconds"]) if SPARK in times else None
    return {
        "tokens": manifest["tokens_in"],
        "bytes": file.stat().st_size,
        "filled": manifest["tokens_kept"] / (manifest["rows"] * args.max_seq_len),
        "sides": times,
        "not run": not_run,
    }


def timed(variant: Variant, out: Path) -> tuple[float, float]:
    """Return the wall-clock seconds, and the CPU seconds of this process and its children."""
    cpu_began = cpu_seconds()
    return common.wall_seconds(variant, out), cpu_seconds() - cpu_began


def cpu_seconds() -> float:
    """CPU seconds of this process, of its children that have ended, and of its running descendants, such as Spark."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    running = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    with_children = sum(times.user + times.system + times.children_user + times.children_system for times in running)
    return sum(each.ru_utime + each.ru_stime for each in both) + with_children


def load(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the tokens per second, including padding, of a DataLoader with one worker."""
    config = make_config(folder / "text.jsonl", max_seq_len=args.max_seq_len, cache_dir=str(folder / "cache"))
    loader, n_batches = make_loader(args, config, num_workers=1)
    rates = []
    for _ in range(args.rounds):
        batches = iter(loader)
        next(batches)  # wait until the worker has started
        rates.append(common.tokens_per_second(batches))
    return {"batches": n_batches, "tokens_per_s": rates}


def resume(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the time, in seconds, to prepare the rows, to open them, and to read the first batch after resuming at
    each row of RESUME_AT."""
    file = folder / "short.jsonl"
    write_text(file, args.rows * SHORT_ROW * 1.1)
    config = make_config(file, max_seq_len=SHORT_ROW, cache_dir=str(folder / "cache"))
    prepared = common.wall_seconds(make_loader, args, config, 0)
    began = time.perf_counter()
    _, n_batches = make_loader(args, config, num_workers=0)
    result: dict[str, Any] = {"prepare_s": prepared, "open_s": time.perf_counter() - began, "first_batch_s": {}}
    for row in (row for row in RESUME_AT if row // args.batch < n_batches):
        loader, _ = make_loader(args, config, num_workers=0)
        position = row // args.batch * args.batch
        state = loader.dataset.state_dict(position, True)
        began = time.perf_counter()
        loader.dataset.load_state_dict(state)
        next(iter(loader))
        result["first_batch_s"][str(row)] = time.perf_counter() - began
    return result


def make_loader(args: argparse.Namespace, config: "DatasetConfig", num_workers: int) -> tuple[Any, int]:
    from data.base.durations import Clock
    from data.config.loader import DataLoaderConfig
    from data.loading.loader import train_loader
    from data.loading.opening import open_streams
    from data.mixing.row_plan import RowPlan

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
        streams = open_streams(config, make_tokenizer(args))
    loader_config = DataLoaderConfig(name="text", dataset=config, num_workers=num_workers, persistent_workers=False)
    size, n_rows = args.batch, sum(rows.n_rows for rows in streams.values())
    n_batches = n_rows // size
    clock = Clock(tokens_per_batch=size * config.max_seq_len, rows_per_batch=size, rows_per_epoch=n_rows)
    plan = RowPlan(loader_config, streams, clock.until(f"{n_batches}ba"), seed=17)
    loader = train_loader(streams, loader_config, plan, n_batches=n_batches, rank=0, world_size=1, pad_token_id=0)
    return loader, n_batches


def prepare_gigabyte(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    file = folder / "gigabyte.jsonl"
    write_text(file, GIGABYTE)
    config = make_config(file, max_seq_len=args.max_seq_len, prepare_workers=args.workers)
    began = time.perf_counter()
    manifest = prepare(folder / "gigabyte", config, make_tokenizer(args))
    seconds = time.perf_counter() - began
    processes = {"parent": resource.RUSAGE_SELF, "largest worker": resource.RUSAGE_CHILDREN}
    return {
        "bytes": file.stat().st_size,
        "tokens": manifest["tokens_in"],
        "seconds": seconds,
        "peak_bytes": {name: common.peak_bytes(who) for name, who in processes.items()},
    }


def show(report: dict[str, Any]) -> None:
    prepared, rates = report["prepare"], report["load"]["tokens_per_s"]
    tokens = f"{prepared['tokens'] / 1e6:,.1f} M tokens"
    print(f"Preparing {prepared['bytes'] / 1e6:,.0f} MB, {tokens}: {report['hardware']}")
    rows = [cells(name, row) for name, row in prepared["sides"].items()]
    for name, reason in prepared["not run"].items():
        rows.append(dict.fromkeys(rows[0], "") | {"variant": name, "s": f"not run: {reason}"})
    common.show_table(rows)
    print(f"Prepared rows: {prepared['filled']:.2%} of the positions contain tokens")
    print(f"Loading, one worker: {common.median(rates, scale=1e-6)} M tokens/s (minimum {min(rates) / 1e6:.2f})")
    if "resume" in report:
        resumed = report["resume"]
        times = ", ".join(f"{seconds:.3f} s at row {int(row):,}" for row, seconds in resumed["first_batch_s"].items())
        print(f"First batch of a resumed run: {times}; opening the rows takes {resumed['open_s']:.2f} s")
    if "gigabyte" in report:
        large = report["gigabyte"]
        peaks = ", ".join(f"{name} {peak / common.MIB:,.0f} MiB" for name, peak in large["peak_bytes"].items())
        print(f"Preparing {large['bytes'] / 1e9:.2f} GB: {large['seconds']:.1f} s; peak memory: {peaks}")


def cells(name: str, row: dict[str, Any]) -> dict[str, str]:
    return {
        "variant": name,
        "M tokens/s/core": common.median(row["tokens_per_s_and_core"], scale=1e-6),
        "min-max": common.spread(row["tokens_per_s_and_core"], scale=1e-6),
        "of tiktoken alone": f"{row['of tiktoken alone']:.2f}",
        "s": common.median(row["seconds"], digits=1),
        "x stock": f"{row['x stock']:.2f}",
        "x Spark": f"{row['x Spark']:.2f}" if row["x Spark"] is not None else "",
    }


if __name__ == "__main__":
    sys.exit(main())
