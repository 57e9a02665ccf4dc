"""Times the preparation and loading of training data: preparing rows, loading them, and resuming at a row in the
middle.

The text is the source code of Python's standard library, shuffled and repeated. Preparation is compared with two
baselines. The first baseline only tokenizes the same text with tiktoken. It is compared in CPU seconds of all
processes, which other programs hardly affect. The second baseline is `datasets.map` with `MDSWriter` in one process. It
is compared in wall-clock seconds. All variants run in every round, and ratios are computed per round.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

from scripts.bench import common
from scripts.bench.stdlib_text import make_vocabulary, texts_of, write_text

if TYPE_CHECKING:
    from data.config.dataset import DatasetConfig
    from data.tokenization.tokenizer import Tokenizer

GIGABYTE = 10**9
TIKTOKEN, STOCK = "tiktoken alone", "stock: datasets.map + MDSWriter"
RESUME_AT = (10, 10_000, 1_000_000)
SHORT_ROW = 16
"""Number of tokens per row in measurements that need a million rows."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    report = common.description(args)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        if args.vocab_file is None:
            args.vocab_file = folder / "vocab.tiktoken"
            make_vocabulary(args.vocab_file, args.vocab_size)
        if args.gigabyte:  # the first measurement, so that the memory of later imports is not counted
            report["gigabyte"] = in_fresh_process(prepare_gigabyte, args, folder)
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


def make_tokenizer(args: argparse.Namespace) -> "Tokenizer":
    from data.config.tokenizer import TokenizerConfig, TokenizerKwargs
    from data.tokenization.build import build_tokenizer

    kwargs = TokenizerKwargs(vocab_file=str(args.vocab_file))
    return build_tokenizer(TokenizerConfig(name="tiktoken", kwargs=kwargs))


def make_config(file: Path, **settings: Any) -> "DatasetConfig":
    from data.config.dataset import DatasetConfig

    return DatasetConfig(hf_name=str(file), **settings)


def prepare(folder: Path, config: "DatasetConfig", tokenizer: "Tokenizer") -> dict[str, Any]:
    """Prepare the rows and return the manifest."""
    from data.preparation.prepare import prepare_into

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
        prepare_into(folder, config, tokenizer)
    return json.loads((folder / "manifest.json").read_text())


def compare_preparation(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    file = folder / "text.jsonl"
    write_text(file, args.megabytes * 1e6)
    tokens, variants = make_variants(args, file)
    times: dict[str, Any] = {name: {"seconds": [], "cpu_seconds": []} for name in variants}
    for number, order in enumerate(common.rounds(variants, args.rounds)):
        for name in order:
            seconds, cpu_seconds = timed(variants[name], folder / f"{name}-{number}")
            times[name]["seconds"].append(seconds)
            times[name]["cpu_seconds"].append(cpu_seconds)
    for row in times.values():
        row["tokens_per_s_and_core"] = [tokens[0] / seconds for seconds in row["cpu_seconds"]]
        row["of tiktoken alone"] = common.ratio(times[TIKTOKEN]["cpu_seconds"], row["cpu_seconds"])
        row["x stock"] = common.ratio(times[STOCK]["seconds"], row["seconds"])
    return {"tokens": tokens[0], "bytes": file.stat().st_size, "sides": times}


def make_variants(args: argparse.Namespace, file: Path) -> tuple[list[int], dict[str, Callable[[Path], None]]]:
    """Return two values: a list with one item, which is set to the number of tokens when rows are prepared, and the
    variants by name."""
    import datasets
    import streaming  # noqa: F401 - imported here, so that the import is not measured

    datasets.disable_progress_bars()
    tokenizer, texts, tokens = make_tokenizer(args), list(texts_of(file)), [0]

    def ours(n_workers: int) -> Callable[[Path], None]:
        def variant(out: Path) -> None:
            config = make_config(file, max_seq_len=args.max_seq_len, prepare_workers=n_workers)
            tokens[0] = prepare(out, config, tokenizer)["tokens_in"]

        return variant

    variants = {TIKTOKEN: lambda out: encode_alone(texts, args), "prepare, 1 worker": ours(1)}
    if args.workers > 1:
        variants[f"prepare, {args.workers} workers"] = ours(args.workers)
    return tokens, variants | {STOCK: lambda out: stock(file, out, args)}


def encode_alone(texts: list[str], args: argparse.Namespace) -> None:
    encoding = make_tokenizer(args)._encoding  # pyright: ignore[reportAttributeAccessIssue]
    for text in texts:
        encoding.encode_ordinary(text)


def stock(file: Path, out: Path, args: argparse.Namespace) -> None:
    """The baseline without Dropless: `datasets.map` tokenizes the text, a loop splits the tokens into rows, and
    `MDSWriter` writes the rows."""
    import datasets
    import numpy as np
    from streaming import MDSWriter

    tokenizer = make_tokenizer(args)
    encoding = tokenizer._encoding  # pyright: ignore[reportAttributeAccessIssue]
    eos = tokenizer.eos_token_id
    data = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(out / "cache"))
    data = data.map(lambda row: {"tokens": [*encoding.encode_ordinary(row["text"]), eos]}, remove_columns=["text"])
    with MDSWriter(columns={"tokens": "ndarray:int32"}, out=str(out / "mds"), hashes=["xxh64"]) as writer:
        buffer: list[int] = []
        for row in data:
            buffer += row["tokens"]  # pyright: ignore[reportArgumentType, reportCallIssue]
            while len(buffer) >= args.max_seq_len:
                writer.write({"tokens": np.array(buffer[: args.max_seq_len], dtype=np.int32)})
                buffer = buffer[args.max_seq_len :]


def timed(variant: Callable[[Path], None], out: Path) -> tuple[float, float]:
    """Return the wall-clock seconds, and the CPU seconds of this process and its children."""
    cpu_began = cpu_seconds()
    return common.wall_seconds(variant, out), cpu_seconds() - cpu_began


def cpu_seconds() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in both)


def load(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the tokens per second, including padding, of a DataLoader with one worker."""
    config = make_config(folder / "text.jsonl", max_seq_len=args.max_seq_len, cache_dir=str(folder / "cache"))
    loader, n_batches = make_loader(args, config, num_workers=1)
    rates = []
    for _ in range(args.rounds):
        batches = iter(loader)
        next(batches)  # the worker has started
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


def in_fresh_process(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function(*arguments)))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def show(report: dict[str, Any]) -> None:
    prepared, rates = report["prepare"], report["load"]["tokens_per_s"]
    tokens = f"{prepared['tokens'] / 1e6:,.1f} M tokens"
    print(f"Preparing {prepared['bytes'] / 1e6:,.0f} MB, {tokens}: {report['hardware']}")
    common.show_table([cells(name, row) for name, row in prepared["sides"].items()])
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
    }


if __name__ == "__main__":
    sys.exit(main())
