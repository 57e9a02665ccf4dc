"""Measures how the start of a preparation and the memory of its workers depend on the size of the input.

The text is the source code of Python's standard library, shuffled and repeated. The start is measured on one large
JSONL file: hashing the file, which is done once per file, computing the slices, and the complete start until the first
slice can be prepared. The memory is the peak resident memory of the largest worker.
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

from scripts.bench import common
from scripts.bench.stdlib_text import make_vocabulary, write_text

if TYPE_CHECKING:
    from data.config.dataset import DatasetConfig
    from data.tokenization.tokenizer import Tokenizer

GB = 10**9


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    report = common.description(args)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        if args.vocab_file is None:
            args.vocab_file = folder / "vocab.tiktoken"
            common.in_fresh_process(make_vocabulary, args.vocab_file, args.vocab_size)
        report["start"] = common.in_fresh_process(measure_start, args, folder) if args.start_gb else None
        report["memory"] = [common.in_fresh_process(measure_memory, args, folder, size) for size in args.memory_gb]
    show(report)
    common.write_json(args.json, report)
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = common.make_parser(__doc__, vocab_size=4096, max_seq_len=2048, workers=2)
    what = "a tiktoken vocabulary, such as quickstart/vocab.tiktoken (default: a vocabulary learned from the text)"
    parser.add_argument("--vocab_file", type=Path, help=what)
    what = "size of the file whose preparation is started, in GB; 0 skips this part; default: %(default)s"
    parser.add_argument("--start_gb", type=float, default=20, help=what)
    what = "sizes of the files that are prepared, in GB; default: 1 4"
    parser.add_argument("--memory_gb", type=float, nargs="*", default=[1, 4], help=what)
    parser.add_argument("--folder", type=Path, help="folder for all files (default: the system's temporary folder)")
    return parser.parse_args(argv)


def measure_start(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the seconds that each step before the preparation takes: opening, slices, planning and hashing."""
    from data.preparation.packing.tokenizing import Tokenizing
    from data.preparation.parts.manifest import fingerprint_inputs
    from data.preparation.parts.plan import SLICE_BYTES, plan
    from data.sources.source import open_source

    file, out = folder / "large.jsonl", folder / "out"
    write_repeated(file, args.start_gb * GB)
    config, tokenizer = config_of(args, file), tokenizer_of(args)
    began = time.perf_counter()
    source = open_source(config)
    opened = time.perf_counter()
    made_from = fingerprint_inputs(config, source, tokenizer)
    hashed = time.perf_counter()
    slices = source.slices(SLICE_BYTES)
    cut = time.perf_counter()
    recipe = Tokenizing(source=source, preprocess=None, tokenizer=tokenizer, config=config, spool=out)
    plan(out, recipe, config, made_from, None)
    planned = time.perf_counter()
    file_bytes = file.stat().st_size
    file.unlink()
    return {
        "bytes": file_bytes,
        "slices": len(slices),
        "open_s": opened - began,
        "hash_s": hashed - opened,
        "slices_s": cut - hashed,
        "plan_s": planned - cut,
        "start_without_hash_s": planned - began - (hashed - opened),
        "peak_bytes": common.peak_bytes(),
    }


def measure_memory(args: argparse.Namespace, folder: Path, size: float) -> dict[str, Any]:
    from data.preparation.prepare import prepare_into

    file = folder / "text.jsonl"
    write_repeated(file, size * GB)
    config, tokenizer = config_of(args, file), tokenizer_of(args)
    began = time.perf_counter()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
        prepare_into(folder / f"rows-{size}", config, tokenizer)
    processes = {"parent": resource.RUSAGE_SELF, "largest worker": resource.RUSAGE_CHILDREN}
    return {
        "bytes": file.stat().st_size,
        "seconds": time.perf_counter() - began,
        "peak_bytes": {name: common.peak_bytes(who) for name, who in processes.items()},
    }


def config_of(args: argparse.Namespace, file: Path) -> "DatasetConfig":
    from data.config.dataset import DatasetConfig

    sizes = {"max_seq_len": args.max_seq_len, "prepare_workers": args.workers}
    return DatasetConfig(hf_name=str(file), cache_dir=str(file.with_name("cache")), **sizes)


def tokenizer_of(args: argparse.Namespace) -> "Tokenizer":
    from data.config.tokenizer import TokenizerConfig, TokenizerKwargs
    from data.tokenization.build import build_tokenizer

    kwargs = TokenizerKwargs(vocab_file=str(args.vocab_file))
    return build_tokenizer(TokenizerConfig(name="tiktoken", kwargs=kwargs))


def write_repeated(file: Path, n_bytes: float) -> None:
    """Write the texts once, and append copies until the file has the size."""
    write_text(file, min(n_bytes, 64e6))
    block = file.read_bytes()
    with file.open("ab") as out:
        for _ in range(round(n_bytes / len(block)) - 1):
            out.write(block)


def show(report: dict[str, Any]) -> None:
    if (start := report["start"]) is not None:
        print(f"Starting to prepare {start['bytes'] / GB:.1f} GB in {start['slices']:,} slices: {report['hardware']}")
        print(f"  {start['hash_s']:.1f} s to hash the file once")
        print(f"  {start['slices_s']:.2f} s to compute the slices")
        print(
            f"  {start['start_without_hash_s']:.2f} s in total without hashing, until the first slice can be prepared"
        )
    for row in report["memory"]:
        peaks = ", ".join(f"{name} {peak / common.MIB:,.0f} MiB" for name, peak in row["peak_bytes"].items())
        print(f"Preparing {row['bytes'] / GB:.2f} GB: {row['seconds']:.0f} s; peak memory: {peaks}")


if __name__ == "__main__":
    sys.exit(main())
