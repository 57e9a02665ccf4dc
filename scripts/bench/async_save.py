"""Compares saving in the background with blocking saves: the time for which training stalls, and the step times during
the write.

One rank trains a small DBRX with one thread. Most of the checkpoint consists of filler tensors, which increase its size
to the requested value. The training steps do not use these tensors, so a step is short compared with a write. In each
round every variant saves once, and the order of the variants changes from round to round. The stall is the duration of
the save call after a step. Steps "inside" begin and end while the background thread writes. The same number of steps
"outside" is run before the save, while nothing is written. The results are medians, and ratios are computed per round.
A plain write of the same number of bytes, followed by fsync, is also timed, because the speed of the disk varies.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Keep scripts/ off sys.path, because scripts/evaluate.py would shadow the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from scripts.bench import common

VARIANTS = ("background", "waiting", "bare write")
_FILLER_BYTES = 16 * 10**6
"""The approximate size of a filler tensor in bytes."""


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    common.prepare_process(args.threads)
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    report = common.description(args) | {"sizes": {}}
    for megabytes in args.megabytes:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            found = measure(Path(folder), megabytes * 10**6, args)
        report["sizes"][str(megabytes)] = found
        show(megabytes, found)
    common.write_json(args.json, report)
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = common.make_parser(__doc__, d_model=64, n_layers=2, rows=1, max_seq_len=64, rounds=7, threads=1)
    parser.add_argument(
        "--megabytes", type=int, nargs="+", default=[200, 1000], help="checkpoint sizes (default: 200 1000)"
    )
    parser.add_argument(
        "--folder", type=Path, help="folder for the checkpoints (default: the system's temporary folder)"
    )
    return parser.parse_args(argv)


def measure(folder: Path, n_bytes: int, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Return the measured values of each round, by variant."""
    step, tensors = build(n_bytes, args)
    saver = build_saver(folder)
    count = 20
    save(saver, folder, tensors, 0, background=True)  # the first save allocates memory for the copy
    saver.wait()
    found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    for number, order in enumerate(common.rounds(VARIANTS, args.rounds), start=1):
        for variant in order:
            if variant == "bare write":
                found[variant].append({"stall": common.wall_seconds(bare_write, folder / "bare", n_bytes)})
                continue
            outside = [timed(step) for _ in range(count)]
            inside: list[tuple[float, float]] = []
            began = time.perf_counter()
            save(saver, folder, tensors, number, background=variant == "background")
            stall = time.perf_counter() - began
            while saver.poll() is None:
                inside.append(timed(step))
            seconds = time.perf_counter() - began
            shutil.rmtree(folder / f"ep0-ba{number}")
            if variant == "background":
                inside = inside[:-1]  # omit the last step, during which the write ended
                count = max(len(inside), 20)  # the number of outside steps in the next round
            found[variant].append({"stall": stall, "seconds": seconds, "inside": inside, "outside": outside})
    return found


def build(n_bytes: int, args: argparse.Namespace) -> tuple[Callable[[], None], dict[str, Any]]:
    """Return a training step and the tensors of a checkpoint."""
    import torch

    from train.checkpoint.load import saved_tensors
    from train.distributed.build_model import build_model
    from train.models.config import AttnConfig, FFNConfig, ModelConfig

    config = ModelConfig(
        d_model=args.d_model,
        n_heads=max(args.d_model // 64, 1),
        n_layers=args.n_layers,
        max_seq_len=args.max_seq_len,
        vocab_size=1024,
        attn_config=AttnConfig(kv_n_heads=1),
        ffn_config=FFNConfig(ffn_hidden_size=2 * args.d_model, moe_num_experts=4, moe_top_k=2, moe_impl="torch"),
    )
    model = build_model(config, None, precision="fp32", device=torch.device("cpu"), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(config.vocab_size, (args.rows, args.max_seq_len))

    def step() -> None:
        losses = model(ids, ids).losses_BS
        assert losses is not None
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    tensors = saved_tensors(model, optimizer)
    left = n_bytes - sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    count = max(left // _FILLER_BYTES, 1)
    for number in range(count if left > 0 else 0):
        tensors[f"filler.{number}"] = torch.rand(left // count // 4)
    return step, tensors


def build_saver(folder: Path) -> Any:
    from train.checkpoint.retention import Retention
    from train.checkpoint.saving.background import BackgroundSaver
    from train.checkpoint.saving.pruning import Pruning
    from train.checkpoint.saving.ranks import Ranks

    pruning = Pruning(folder, Retention(newest=-1), None)
    return BackgroundSaver(ranks=Ranks(), main_ranks=Ranks(), confirm=lambda: None, pruning=pruning)


def save(saver: Any, folder: Path, tensors: dict[str, Any], batch: int, *, background: bool) -> None:
    from train.checkpoint.saving.background import Content
    from train.checkpoint.storage.manifest import Manifest

    about = Manifest(
        run_id="bench",
        run_name="bench",
        batch=batch,
        epoch=0,
        written="2026-01-01T00:00:00+00:00",
        world_size=1,
        versions={},
    )
    content = Content(tensors=tensors, state=b"{}", config="", about=about, gather=False)
    saver.save(folder / f"ep0-ba{batch}", content, background=background)


def timed(step: Callable[[], None]) -> tuple[float, float]:
    """Return the wall-clock seconds of a step, and the CPU seconds of this thread, which other programs do not
    affect."""
    began, cpu = time.perf_counter(), time.thread_time()
    step()
    return time.perf_counter() - began, time.thread_time() - cpu


def bare_write(file: Path, n_bytes: int) -> None:
    data = bytes(1 << 20)
    with file.open("wb", buffering=0) as opened:
        for _ in range(n_bytes // len(data)):
            opened.write(data)
        os.fsync(opened.fileno())
    file.unlink()


def median_of(steps: Sequence[tuple[float, float]], clock: int) -> float:
    return statistics.median(step[clock] for step in steps)


def show(megabytes: int, found: dict[str, list[dict[str, Any]]]) -> None:
    background = found["background"]
    stalls = {variant: [each["stall"] for each in found[variant]] for variant in VARIANTS}
    counts = [len(each["inside"]) for each in background]
    slower, slower_cpu = (
        [median_of(each["inside"], clock) / median_of(each["outside"], clock) for each in background if each["inside"]]
        or [float("nan")]
        for clock in (0, 1)
    )
    outside = [median_of(each["outside"], 0) for each in background]
    print(
        f"{megabytes} MB: {min(counts)} to {max(counts)} steps run during a write, which takes "
        f"{common.median([each['seconds'] for each in background])} s; a step before the save takes "
        f"{common.median(outside, 1, 1000)} ms"
    )
    print(
        f"a step during a write takes {common.median(slower)} x the time of a step before the save "
        f"({common.spread(slower)}), and {common.median(slower_cpu)} x its CPU time ({common.spread(slower_cpu)})"
    )
    common.show_table(
        [
            {
                "save": variant,
                "stall, s (min-max)": f"{common.median(stalls[variant], 3)} ({common.spread(stalls[variant], 3)})",
                "x waiting": f"{common.ratio(stalls[variant], stalls['waiting']):.3f}",
            }
            for variant in VARIANTS
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
