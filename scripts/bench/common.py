"""Shared code of the benchmarks: flags, order of the variants, clocks, ratios, tables and reports. torch is imported
lazily."""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.models.config import ModelConfig

MIB = 2**20


def make_parser(description: str | None, **integers: int) -> argparse.ArgumentParser:
    """Return a parser with --json and an integer flag for each keyword argument. The value of the argument is the
    default of the flag. The function also enables the console output of the measured code."""
    from data.base.console import show_on_console

    show_on_console()
    parser = argparse.ArgumentParser(description=description)
    for name, default in integers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measured values to this JSON file")
    return parser


def step_parser(description: str | None, **integers: int) -> argparse.ArgumentParser:
    """Return a parser for benchmarks of a training step of a small DBRX, with additional integer flags."""
    sizes = {"n_layers": 8, "d_model": 512, "n_heads": 8, "kv_n_heads": 2, "ffn_hidden_size": 896}
    sizes |= {"moe_num_experts": 16, "moe_top_k": 4, "vocab_size": 8192, "rows": 4, "max_seq_len": 512}
    parser = make_parser(description, **sizes, documents=3, rounds=7, threads=1, **integers)
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "amp_bf16"])
    return parser


def model_config(args: argparse.Namespace, moe_recompute: bool = False) -> "ModelConfig":
    """Build the model config from the flags, which have the same names as its keys."""
    from train.models.config import AttnConfig, FFNConfig, ModelConfig

    ffn_sizes = {name: getattr(args, name) for name in ("ffn_hidden_size", "moe_num_experts", "moe_top_k")}
    names = ("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size")
    return ModelConfig(
        **{name: getattr(args, name) for name in names},
        attn_config=AttnConfig(kv_n_heads=args.kv_n_heads),
        ffn_config=FFNConfig(**ffn_sizes, moe_recompute=moe_recompute),
    )


def available_moe_impls(device: str, dtype: Any, notes: list[str]) -> Iterator[str]:
    """Yield the implementations that are available on this device for this dtype. For each implementation that is not
    available, append the reason to notes."""
    from train.models.experts.experts import MOE_IMPLS, resolve_moe_impl

    for moe_impl in MOE_IMPLS:
        try:
            resolve_moe_impl(moe_impl, device, dtype)
        except ValueError as error:
            notes.append(f"not measured: {error}")
            continue
        yield moe_impl


def prepare_process(threads: int) -> None:
    """Set torch's number of threads, and configure the memory allocator as in train/run/trainer.py, for all
    variants."""
    import torch

    from train.hardware.allocator import keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory()


def rounds(variants: Iterable[str], n_rounds: int) -> Iterator[list[str]]:
    """Yield the order of the variants for each round. The order rotates, so that no variant is always the first."""
    names = list(variants)
    for number in range(n_rounds):
        print(f"round {number + 1} of {n_rounds}", file=sys.stderr, flush=True)
        start = number % len(names)
        yield names[start:] + names[:start]


def alternated(
    variants: Sequence[str], n_rounds: int, step: Callable[[str], float], settled: Callable[[], None]
) -> dict[str, list[float]]:
    """Call `step` for each variant in each round and return its results, such as seconds, by variant. Before the first
    round, each variant runs two warm-up steps, and then `settled` is called."""
    for variant in (*variants, *variants):
        step(variant)
    settled()
    times: dict[str, list[float]] = {variant: [] for variant in variants}
    for order in rounds(variants, n_rounds):
        for variant in order:
            times[variant].append(step(variant))
    return times


def now(device: str) -> float:
    """Return the time of a clock in seconds: on a GPU, the wall-clock time after synchronization; on a CPU, the CPU
    time of this process."""
    if device == "cpu":
        return time.process_time()
    import torch

    torch.cuda.synchronize()
    return time.perf_counter()


def wall_seconds(function: Callable[..., Any], *arguments: Any) -> float:
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def tokens_per_second(batches: Iterable[Any]) -> float:
    began = time.perf_counter()
    tokens = sum(batch["input_ids"].numel() for batch in batches)
    return tokens / (time.perf_counter() - began)


def peak_bytes(who: int = resource.RUSAGE_SELF) -> int:
    """The peak resident memory of this process, or of its largest child, in bytes."""
    peak = resource.getrusage(who).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux reports KiB, macOS bytes


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median, over all rounds, of the ratio `above / below`."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def floors_of(times: Mapping[str, Sequence[float]], prefixes: Mapping[str, str]) -> dict[str, list[float]]:
    """For each prefix, return a list with the time of the fastest variant in each round. Only variants whose name
    starts with the prefix are compared."""
    return {
        floor: [min(row) for row in zip(*(times[name] for name in times if name.startswith(prefix)), strict=True)]
        for floor, prefix in prefixes.items()
    }


def median(values: Sequence[float], digits: int = 2, scale: float = 1.0) -> str:
    return f"{statistics.median(values) * scale:.{digits}f}"


def spread(values: Sequence[float], digits: int = 2, scale: float = 1.0) -> str:
    """The minimum and the maximum, as text."""
    return f"{min(values) * scale:.{digits}f}-{max(values) * scale:.{digits}f}"


def show_table(rows: Sequence[Mapping[str, str]]) -> None:
    """Print the rows as a table. The first column is left-aligned; all other columns are right-aligned."""
    columns = list(rows[0])
    widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in columns}
    for row in ({column: column for column in columns}, *rows):
        cells = [row[column].rjust(widths[column]) for column in columns[1:]]
        print("  ".join([row[columns[0]].ljust(widths[columns[0]]), *cells]), flush=True)


def hardware(device: str = "cpu") -> str:
    if device == "cpu":
        return f"{os.cpu_count()} x {_cpu_name()}"
    import torch

    return torch.cuda.get_device_name()


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def description(args: argparse.Namespace) -> dict[str, Any]:
    """The header of a report: flags, hardware, and the version of torch."""
    flags = {name: value for name, value in vars(args).items() if name != "json"}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}
    # The version in the package metadata has no build tag, such as +cu130.
    torch = sys.modules["torch"].__version__ if "torch" in sys.modules else version("torch")
    return {"settings": settings, "hardware": hardware(getattr(args, "device", "cpu")), "torch": torch}


def write_json(file: Path | None, report: Any) -> None:
    if file is not None:
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result. It runs in its own process, so that memory of earlier measurements is not counted."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(function(*arguments)))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result
