"""Compares the time to export a checkpoint with the time to copy the exported files, and measures the peak memory of
the export.

The checkpoint contains a random DBRX, in as many files as --ranks ranks would write. In every round, both variants run
in turn. Before each variant, all data is flushed to disk. The results are medians over the rounds. Ratios of wall-clock
seconds and of CPU seconds are computed per round. On a virtual machine, the first use of memory can make writing a file
up to eight times slower, in both variants. Both variants read their source files from the page cache. The export is not
verified.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

from scripts.bench import common


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    report = common.description(args)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        report |= make_checkpoint(folder / "run", args.gigabytes, args.d_model, args.ranks)
        report |= {"precisions": {precision: measure(folder, precision, args.rounds) for precision in ("fp32", "bf16")}}
    show(report)
    common.write_json(args.json, report)
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = common.make_parser(__doc__, d_model=1024, rounds=7)
    what = "size of the checkpoint's weights; default: %(default)s"
    parser.add_argument("--gigabytes", type=float, default=3.0, help=what)
    parser.add_argument(
        "--ranks", type=int, default=2, help="number of ranks that wrote the checkpoint; default: %(default)s"
    )
    parser.add_argument("--folder", type=Path, help="folder for all files (default: the system's temporary folder)")
    return parser.parse_args(argv)


def make_checkpoint(folder: Path, gigabytes: float, d_model: int, ranks: int) -> dict[str, Any]:
    """Create a save folder like that of a run on this number of ranks, and return the sizes and the number of the
    checkpoint's tensors."""
    import warnings

    import torch
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    from train.checkpoint.reader import PREFIX
    from train.config.load import read_config
    from train.models.shapes import parameter_shapes

    folder.mkdir()
    per_layer = 4 * (3 * 8 * d_model * 7 // 4 * d_model + 3 * d_model * d_model)
    n_layers = max(1, round(gigabytes * 1e9 / per_layer))
    text = (ROOT / "yamls" / "finetune" / "dbrx_tiny.yaml").read_text(encoding="utf-8")
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    sizes = {"d_model": d_model, "n_heads": max(1, d_model // 128), "n_layers": n_layers}
    ffn = f"model.ffn_config={{ffn_hidden_size: {d_model * 7 // 4}, moe_num_experts: 8, moe_top_k: 2}}"
    vocab = f"tokenizer.kwargs.vocab_file={ROOT / 'quickstart' / 'vocab.tiktoken'}"
    overrides = [
        *(f"model.{key}={value}" for key, value in sizes.items()),
        ffn,
        vocab,
        "model.attn_config.kv_n_heads=1",
    ]
    config = read_config(str(path), overrides)
    write_config_and_tokenizer(folder, config)
    shapes = parameter_shapes(config.model)
    torch.manual_seed(0)
    state = {PREFIX + name: torch.randn(shape) for name, shape in shapes.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(state, storage_writer=FileSystemWriter(folder / "ep0-ba1", thread_count=ranks), no_dist=True)
    numels = [torch.Size(shape).numel() for shape in shapes.values()]
    return {"bytes": 4 * sum(numels), "largest_tensor_bytes": 4 * max(numels), "tensors": len(numels)}


def write_config_and_tokenizer(folder: Path, config: Any) -> None:
    from data.tokenization.build import build_tokenizer
    from train.config.load import to_yaml

    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    build_tokenizer(config.tokenizer).save_pretrained(folder / "tokenizer", config.max_seq_len)


def measure(folder: Path, precision: str, n_rounds: int) -> dict[str, Any]:
    """Return the wall-clock and CPU seconds of each variant in each round, and the peak memory of an export minus the
    memory in use at its start. The order of the variants changes from round to round."""
    model, other = folder / precision, folder / "other"
    found: dict[str, Any] = {"export": [], "copy": []}
    in_fresh_process("export", folder / "run", model, precision)  # not timed: writes the files that `copy` copies
    sources = {"export": folder / "run", "copy": model}
    for order in common.rounds(sources, n_rounds):
        for variant in order:
            os.sync()
            seconds, cpu_seconds, peak = in_fresh_process(variant, sources[variant], other, precision)
            found[variant].append({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak})
            shutil.rmtree(other)
    found["bytes"] = sum(file.stat().st_size for file in model.iterdir())
    shutil.rmtree(model)
    for clock in ("seconds", "cpu_seconds"):
        copy, export = ([each[clock] for each in found[variant]] for variant in ("copy", "export"))
        found[f"share_of_copying_{clock}"] = common.ratio(copy, export)
    return found


_VARIANT = """\
import re, shutil, sys, time
from pathlib import Path
from train.export.export import export

def status(key):
    return int(re.search(rf"{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def copy(folder, output, precision):
    output.mkdir()
    for file in folder.iterdir():
        shutil.copyfile(file, output / file.name)

variant = {"export": export, "copy": copy}[sys.argv[1]]
before, started, cpu = status("VmRSS"), time.perf_counter(), time.process_time()
variant(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
print(time.perf_counter() - started, time.process_time() - cpu, status("VmHWM") - before)
"""


def in_fresh_process(variant: str, source: Path, output: Path, precision: str) -> list[float]:
    """Return wall-clock seconds, CPU seconds, and the peak memory in bytes. Each variant runs in a fresh process,
    because the first use of memory on a virtual machine is several times slower than later uses."""
    command = [sys.executable, "-c", _VARIANT, variant, str(source), str(output), precision]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return [float(word) for word in done.stdout.split()[-3:]]


def show(report: dict[str, Any]) -> None:
    largest = report["largest_tensor_bytes"]
    print(f"{report['bytes'] / 1e9:.2f} GB in {report['tensors']} tensors; largest tensor: {largest / 1e6:.0f} MB")
    common.show_table([cells(precision, found) for precision, found in report["precisions"].items()])


def cells(precision: str, found: dict[str, Any]) -> dict[str, str]:
    row = {"precision": precision, "written GB": f"{found['bytes'] / 1e9:.2f}"}
    for variant in ("export", "copy"):
        seconds = [each["seconds"] for each in found[variant]]
        row[f"{variant} s (min-max)"] = f"{common.median(seconds)} ({common.spread(seconds)})"
    shares = [found[f"share_of_copying_{clock}"] for clock in ("seconds", "cpu_seconds")]
    row["x copying (CPU)"] = f"{shares[0]:.2f} ({shares[1]:.2f})"
    row["peak memory MB"] = f"{max(each['peak_bytes'] for each in found['export']) / 1e6:.0f}"
    return row


if __name__ == "__main__":
    sys.exit(main())
