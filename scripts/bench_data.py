"""Times the way of the data: preparing rows, loading them, and going on in the middle of them.

The text is Python's standard library, shuffled and repeated. Preparing stands beside tiktoken alone on the same text,
both in CPU seconds, of all processes together, which other programs on the machine hardly change; and beside the stock
way, `datasets.map` and `MDSWriter` in one process, both in seconds on the clock. All take turns in every round, and
ratios are taken within a round.
"""

import argparse
import base64
import json
import multiprocessing
import os
import platform
import random
import resource
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data.config.schema import DatasetConfig
    from data.tokenization.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
GIGABYTE = 10**9
RESUME_AT = (10, 10_000, 1_000_000)
SHORT_ROW = 16
"""Tokens of a row where a million of them are needed."""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    what = "a tiktoken vocabulary; the quickstart's gives a token a letter (default: one is made from the text)"
    parser.add_argument("--vocab_file", type=Path, help=what)
    parser.add_argument("--vocab_size", type=int, default=32768, help="of one that is made (default: 32768)")
    parser.add_argument("--megabytes", type=float, default=40, help="of text to prepare; default: %(default)s")
    parser.add_argument("--max_seq_len", type=int, default=2048, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--workers", type=int, help="default: one a core")
    parser.add_argument("--batch", type=int, default=8, help="rows of a batch; default: %(default)s")
    rows = "rows of the dataset to go on in; 0: do not; default: %(default)s"
    parser.add_argument("--rows", type=int, default=RESUME_AT[-1] + 1024, help=rows)
    parser.add_argument("--gigabyte", action="store_true", help="also prepare 1 GB, and measure the peak memory")
    parser.add_argument("--folder", type=Path, help="where it all is written (default: the system's for what passes)")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    args = parser.parse_args(argv)
    if args.vocab_file is not None and not args.vocab_file.is_file():
        parser.error(f"--vocab_file is {args.vocab_file}, but there is no such file")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from data.base.workers import all_cores

    args.workers = args.workers or all_cores()
    settings = {name: str(value) for name, value in vars(args).items() if name != "json"}
    report: dict[str, Any] = {"settings": settings, "hardware": f"{os.cpu_count()} x {cpu_name()}"}
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        if args.vocab_file is None:
            args.vocab_file = folder / "vocab.tiktoken"
            make_vocabulary(args.vocab_file, args.vocab_size)
        if args.gigabyte:  # first: what is imported later would count as its memory
            report["gigabyte"] = in_fresh_process(prepare_gigabyte, args, folder)
        report["prepare"] = prepare_and_others(args, folder)
        report["load"] = load(args, folder)
        if args.rows:
            report["resume"] = resume(args, folder)
    show(report)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def write_text(file: Path, n_bytes: float) -> list[str]:
    """JSONL of documents; returns the texts of one pass through the library, of which the file has its beginning."""
    texts = library()
    written = 0
    with file.open("w", encoding="utf-8") as out:
        while written < n_bytes:
            for text in texts:
                written += out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                if written >= n_bytes:
                    break
    return texts


def library() -> list[str]:
    root = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(root.rglob("*.py")) if "site-packages" not in path.parts]
    texts = [path.read_bytes().decode("utf-8", errors="ignore") for path in files]
    texts = [text for text in texts if text.strip()]
    random.Random(0).shuffle(texts)
    return texts


def make_vocabulary(file: Path, size: int) -> None:
    """Merges of byte pairs learnt from the library, so that a token is as long as those that people train with."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from data.tokenization.tiktoken_bpe import byte_letters

    byte_of = {letter: byte for byte, letter in enumerate(byte_letters())}
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.train_from_iterator(
        library(), trainers.BpeTrainer(vocab_size=size, initial_alphabet=list(byte_of), show_progress=False)
    )
    lines = []
    for token, rank in bpe.get_vocab().items():
        text = base64.b64encode(bytes(byte_of[letter] for letter in token)).decode()
        lines.append(f"{text} {rank}\n")
    file.write_text("".join(lines))


def texts_of(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def make_tokenizer(args: argparse.Namespace) -> "Tokenizer":
    from data.config.schema import TokenizerConfig, TokenizerKwargs
    from data.tokenization.tokenizer import build_tokenizer

    kwargs = TokenizerKwargs(vocab_file=str(args.vocab_file))
    return build_tokenizer(TokenizerConfig(name="tiktoken", kwargs=kwargs))


def make_config(file: Path, **settings: Any) -> "DatasetConfig":
    from data.config.schema import DatasetConfig

    return DatasetConfig(hf_name=str(file), **settings)


def prepare(folder: Path, config: "DatasetConfig", tokenizer: "Tokenizer") -> dict[str, Any]:
    """The manifest."""
    from data.preparation.prepare import prepare_into

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
        prepare_into(folder, config, tokenizer)
    return json.loads((folder / "manifest.json").read_text())


def prepare_and_others(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import datasets
    import streaming  # noqa: F401 - the imports are not what is measured

    datasets.disable_progress_bars()
    file = folder / "text.jsonl"
    write_text(file, args.megabytes * 1e6)
    tokenizer = make_tokenizer(args)
    tokens = [0]

    def ours(n_workers: int) -> Callable[[Path], None]:
        def side(out: Path) -> None:
            config = make_config(file, max_seq_len=args.max_seq_len, prepare_workers=n_workers)
            tokens[0] = prepare(out, config, tokenizer)["tokens_in"]

        return side

    texts = list(texts_of(file))
    sides: dict[str, Callable[[Path], None]] = {
        "tiktoken alone": lambda out: encode_alone(texts, args),
        "prepare, 1 worker": ours(1),
        f"prepare, {args.workers} workers": ours(args.workers),
        "stock: datasets.map + MDSWriter": lambda out: stock(file, out, args),
    }
    if args.workers == 1:
        del sides["prepare, 1 workers"]
    times: dict[str, Any] = {name: {"seconds": [], "cpu_seconds": []} for name in sides}
    for number in range(args.rounds):
        for name, side in sides.items():
            seconds, cpu_seconds = timed(side, folder / f"{name}-{number}")
            times[name]["seconds"].append(seconds)
            times[name]["cpu_seconds"].append(cpu_seconds)
    for row in times.values():
        row["tokens_per_s_and_core"] = [tokens[0] / seconds for seconds in row["cpu_seconds"]]
        row["of tiktoken alone"] = ratio(times["tiktoken alone"]["cpu_seconds"], row["cpu_seconds"])
        row["x stock"] = ratio(times["stock: datasets.map + MDSWriter"]["seconds"], row["seconds"])
    return {"tokens": tokens[0], "bytes": file.stat().st_size, "sides": times}


def encode_alone(texts: list[str], args: argparse.Namespace) -> None:
    encoding = make_tokenizer(args)._encoding  # pyright: ignore[reportAttributeAccessIssue]
    for text in texts:
        encoding.encode_ordinary(text)


def stock(file: Path, out: Path, args: argparse.Namespace) -> None:
    """What one writes without us: tokens by `datasets.map`, rows cut from them in a loop, MDS by `MDSWriter`."""
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


def timed(side: Callable[[Path], None], out: Path) -> tuple[float, float]:
    """Seconds on the clock, and of all cores."""
    began, cpu_began = time.perf_counter(), cpu_seconds()
    side(out)
    return time.perf_counter() - began, cpu_seconds() - cpu_began


def cpu_seconds() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in both)


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def load(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Tokens a second of one worker, through a DataLoader, padding and all."""
    config = make_config(folder / "text.jsonl", max_seq_len=args.max_seq_len, cache_dir=str(folder / "cache"))
    loader, n_batches = make_loader(args, config, num_workers=1)
    rates = []
    for _ in range(args.rounds):
        batches = iter(loader)
        next(batches)  # the worker has started
        began = time.perf_counter()
        tokens = sum(batch["input_ids"].numel() for batch in batches)
        rates.append(tokens / (time.perf_counter() - began))
    return {"batches": n_batches, "tokens_per_s": rates}


def resume(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds until the first batch from opened rows, where a run goes on there."""
    file = folder / "short.jsonl"
    write_text(file, args.rows * SHORT_ROW * 1.1)
    config = make_config(file, max_seq_len=SHORT_ROW, cache_dir=str(folder / "cache"))
    began = time.perf_counter()
    make_loader(args, config, num_workers=0)
    prepared = time.perf_counter() - began
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
    from data.config.schema import DataLoaderConfig
    from data.loading.loader import train_loader
    from data.loading.rows import open_streams
    from data.mixing.curriculum import RowPlan

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
    peak = {"parent": resource.RUSAGE_SELF, "largest worker": resource.RUSAGE_CHILDREN}
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "bytes": file.stat().st_size,
        "tokens": manifest["tokens_in"],
        "seconds": seconds,
        "peak_bytes": {name: resource.getrusage(who).ru_maxrss * unit for name, who in peak.items()},
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


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    prepared = report["prepare"]
    title = (
        f"Preparing {prepared['bytes'] / 1e6:,.0f} MB, {prepared['tokens'] / 1e6:,.1f} M tokens: {report['hardware']}"
    )
    table = Table(title=title)
    table.add_column("side")
    for column in ("M tokens/s/core", "min-max", "of tiktoken alone", "s", "x stock"):
        table.add_column(column, justify="right")
    for name, row in prepared["sides"].items():
        rates = [rate / 1e6 for rate in row["tokens_per_s_and_core"]]
        table.add_row(
            name,
            f"{statistics.median(rates):.2f}",
            f"{min(rates):.2f}-{max(rates):.2f}",
            f"{row['of tiktoken alone']:.2f}",
            f"{statistics.median(row['seconds']):.1f}",
            f"{row['x stock']:.2f}",
        )
    console = Console(width=max(120, Console().width))
    console.print(table)
    rates = report["load"]["tokens_per_s"]
    lines = [f"Loading, one worker: {statistics.median(rates) / 1e6:.2f} M tokens/s ({min(rates) / 1e6:.2f} at least)"]
    if "resume" in report:
        resumed = report["resume"]
        times = ", ".join(f"{seconds:.3f} s at row {int(row):,}" for row, seconds in resumed["first_batch_s"].items())
        lines.append(f"First batch of a run that goes on: {times}; opening the rows takes {resumed['open_s']:.2f} s")
    if "gigabyte" in report:
        large = report["gigabyte"]
        peaks = ", ".join(f"{name} {peak / 2**20:,.0f} MiB" for name, peak in large["peak_bytes"].items())
        lines.append(f"Preparing {large['bytes'] / 1e9:.2f} GB: {large['seconds']:.1f} s; peak memory: {peaks}")
    for line in lines:
        console.print(line, markup=False, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
