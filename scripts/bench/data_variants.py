"""The variants that scripts/bench/bench_data.py compares: encoding alone, preparation, and a program without
Dropless."""

import argparse
import json
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scripts.bench.stdlib_text import texts_of

if TYPE_CHECKING:
    from data.config.dataset import DatasetConfig
    from data.tokenization.tiktoken_tokenizer import TiktokenTokenizer

TIKTOKEN = "tiktoken alone"
STOCK, SPARK = "stock: datasets.map + MDSWriter", "Spark local[2]: dataframe_to_mds"
COLUMNS = {"tokens": "ndarray:int32"}
Variant = Callable[[Path], object]


def make_variants(args: argparse.Namespace, file: Path) -> tuple[list[dict[str, Any]], dict[str, Variant]]:
    """The variants by name, and a list to which each preparation appends its manifest."""
    import datasets
    import streaming  # noqa: F401 - imported here, so that the import is not measured

    datasets.disable_progress_bars()
    manifests: list[dict[str, Any]] = []
    encoders = {"tiktoken": make_tokenizer(args, fast=False), "quicktok": make_tokenizer(args)}
    if encoders["quicktok"].fast is None:
        del encoders["quicktok"]
    texts = list(texts_of(file))
    variants: dict[str, Variant] = {f"{name} alone": encode_alone(texts, each) for name, each in encoders.items()}
    for n_workers in sorted({1, args.workers}):
        config = make_config(file, max_seq_len=args.max_seq_len, prepare_workers=n_workers)
        workers = f"{n_workers} worker{'s' * (n_workers > 1)}"
        for name, tokenizer in encoders.items():
            variants[f"prepare, {workers}, {name}"] = preparation(config, tokenizer, manifests)
    tokenizer = encoders["tiktoken"]
    variants[STOCK] = lambda out: map_and_write(file, out, tokenizer, args.max_seq_len)
    return manifests, variants


def make_tokenizer(args: argparse.Namespace, fast: bool = True) -> "TiktokenTokenizer":
    """The tokenizer that the flags specify. With `fast=False`, it encodes with tiktoken even if quicktok is
    installed."""
    from data.config.tokenizer import TokenizerConfig, TokenizerKwargs
    from data.tokenization.tiktoken_tokenizer import build_tiktoken

    kwargs = TokenizerKwargs(vocab_file=str(args.vocab_file))
    if args.encoding_name is not None:
        kwargs = TokenizerKwargs(encoding_name=args.encoding_name)
    tokenizer = build_tiktoken(TokenizerConfig(name="tiktoken", kwargs=kwargs))
    if not fast:
        tokenizer.fast = None
    return tokenizer


def make_config(file: Path, **settings: Any) -> "DatasetConfig":
    from data.config.dataset import DatasetConfig

    return DatasetConfig(hf_name=str(file), **settings)


def prepare(folder: Path, config: "DatasetConfig", tokenizer: "TiktokenTokenizer") -> dict[str, Any]:
    """Prepare the rows and return the manifest."""
    from data.preparation.prepare import prepare_into

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # noqa: PTH123
        prepare_into(folder, config, tokenizer)
    return json.loads((folder / "manifest.json").read_text())


def preparation(config: "DatasetConfig", tokenizer: "TiktokenTokenizer", manifests: list[dict[str, Any]]) -> Variant:
    return lambda out: manifests.append(prepare(out, config, tokenizer))


def encode_alone(texts: list[str], tokenizer: "TiktokenTokenizer") -> Variant:
    def tiktoken(text: str) -> np.ndarray:
        return tokenizer._encoding.encode_to_numpy(text, disallowed_special=())  # faster than `encode`

    encode = tiktoken if tokenizer.fast is None else tokenizer.fast.encode

    def variant(out: Path) -> None:
        for text in texts:
            encode(text)

    return variant


def map_and_write(file: Path, out: Path, tokenizer: "TiktokenTokenizer", max_seq_len: int) -> None:
    """The baseline without Dropless: `datasets.map` tokenizes the text, a loop splits the tokens into rows, and
    `MDSWriter` writes the rows."""
    import datasets
    from streaming import MDSWriter

    encoding, eos = tokenizer._encoding, tokenizer.eos_token_id
    data = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(out / "cache"))
    data = data.map(lambda row: {"tokens": [*encoding.encode_ordinary(row["text"]), eos]}, remove_columns=["text"])
    with MDSWriter(columns=COLUMNS, out=str(out / "mds"), hashes=["xxh64"]) as writer:
        buffer: list[int] = []
        for row in data:
            buffer += row["tokens"]  # pyright: ignore[reportArgumentType, reportCallIssue]
            while len(buffer) >= max_seq_len:
                writer.write({"tokens": np.array(buffer[:max_seq_len], dtype=np.int32)})
                buffer = buffer[max_seq_len:]
