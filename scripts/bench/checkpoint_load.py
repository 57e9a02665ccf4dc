"""Times loading a sharded checkpoint (weights and Adam's moments) into a model and its optimizer, and saving such a
checkpoint.

All variants run in turn on 2 ranks with FSDP2 and read the same files: this project's reader with and without
verification, and torch's own reader, which fills the same tensors. In each round every variant loads once with the
files in the page cache, and once after the files were dropped from the page cache. The order of the variants changes
from round to round. The duration of a load is that of its slowest rank. The results are medians over the rounds, and
ratios are computed per round. Two byte counts are read from /proc/self/io: the bytes that a rank requested, and the
bytes that were read from the disk. For saving, the writer that computes hashes is compared with torch's own writer;
both call fsync.
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
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from scripts.bench import common

RANKS = 2
LOADS = {"verified": "ours, verified", "unverified": "ours, not verified", "torch": "torch's reader"}
SAVES = {"hashing": "hashing writer", "torch": "torch's writer"}
STATES = ("cached", "dropped")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    report = common.description(args)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        report |= measure(Path(folder), args)
    show(report)
    common.write_json(args.json, report)
    return 0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = common.make_parser(__doc__, d_model=1024, n_layers=4, rounds=7, save_rounds=7, threads=1)
    parser.add_argument(
        "--folder", type=Path, help="folder for the checkpoint (default: the system's temporary folder)"
    )
    return parser.parse_args(argv)


def measure(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Start the ranks and merge their measurements."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=measure_rank, args=(folder, rank, port, args)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        raise RuntimeError(f"the ranks ended with exit codes {[process.exitcode for process in ranks]}")
    return json.loads((folder / "report.json").read_text())


def measure_rank(folder: Path, rank: int, port: int, args: argparse.Namespace) -> None:
    """Run the measurements of one rank in its process."""
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "NODE_RANK": 0}
    os.environ.update({key: str(value) for key, value in variables.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), CUDA_VISIBLE_DEVICES="")
    common.prepare_process(args.threads)
    import torch.distributed as dist

    dist.init_process_group("gloo")
    model, optimizer = build(args)
    checkpoint = folder / "run" / "ep0-ba1"
    checkpoint.parent.mkdir(exist_ok=True)
    save(checkpoint, model, optimizer)
    report = {
        "bytes": sum(file.stat().st_size for file in checkpoint.iterdir()),
        "loads": measure_loads(checkpoint, model, optimizer, args.rounds),
        "saves": measure_saves(folder, model, optimizer, args.save_rounds),
    }
    if rank == 0:
        (folder / "report.json").write_text(json.dumps(report))
    dist.barrier()
    dist.destroy_process_group()


def build(args: argparse.Namespace) -> tuple[Any, Any]:
    """Return a DBRX model in FSDP2 units, and an AdamW optimizer whose moments are already allocated."""
    import torch

    from train.config.schema import FSDPConfig
    from train.distributed.build_model import build_model
    from train.models.config import AttnConfig, FFNConfig, ModelConfig

    config = ModelConfig(
        d_model=args.d_model,
        n_heads=max(args.d_model // 128, 1),
        n_layers=args.n_layers,
        max_seq_len=2048,
        vocab_size=8192,
        attn_config=AttnConfig(kv_n_heads=1),
        ffn_config=FFNConfig(ffn_hidden_size=args.d_model * 7 // 4, moe_num_experts=8, moe_top_k=2, moe_impl="torch"),
    )
    model = build_model(config, FSDPConfig(), precision="fp32", device=torch.device("cpu"), seed=0)
    optimizer = torch.optim.AdamW(model.parameters())
    for param in model.parameters():
        moments = {key: torch.rand_like(param).detach() for key in ("exp_avg", "exp_avg_sq")}
        optimizer.state[param] = {"step": torch.tensor(1.0), **moments}
    return model, optimizer


def save(checkpoint: Path, model: Any, optimizer: Any) -> None:
    from train.checkpoint.load import saved_tensors
    from train.checkpoint.saving.save import save_checkpoint
    from train.checkpoint.storage.manifest import Manifest

    about = Manifest(
        run_id="bench",
        run_name="bench",
        batch=1,
        epoch=0,
        written="2026-01-01T00:00:00+00:00",
        world_size=RANKS,
        versions={},
    )
    saved = save_checkpoint(checkpoint, saved_tensors(model, optimizer), state=b"{}", config="", about=about)
    if saved.refused is not None:
        raise saved.refused


def measure_loads(checkpoint: Path, model: Any, optimizer: Any, rounds: int) -> dict[str, Any]:
    """Return the measured values of each round, by variant and by state of the page cache."""
    found: dict[str, Any] = {variant: {state: [] for state in STATES} for variant in LOADS}
    variants = {variant: loader(variant, checkpoint, model, optimizer) for variant in LOADS}
    for order in turns(variants, rounds):
        for state in STATES:
            for variant in order:
                keep(checkpoint, state)
                found[variant][state].append(timed(variants[variant]))
    return found


def loader(variant: str, checkpoint: Path, model: Any, optimizer: Any) -> Callable[[], None]:
    import torch
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load as torch_load

    from train.checkpoint.load import load, saved_tensors

    def ours() -> None:
        load(checkpoint, model, optimizer, verify=variant == "verified")

    def torchs() -> None:
        # Load into new moments, as in a run that has just started.
        for param, state in optimizer.state.items():
            state.update({key: torch.zeros_like(param).detach() for key in ("exp_avg", "exp_avg_sq")})
        with torch.no_grad():
            tensors = {key: tensor.detach() for key, tensor in saved_tensors(model, optimizer).items()}
            torch_load(tensors, storage_reader=FileSystemReader(checkpoint))

    return torchs if variant == "torch" else ours


def keep(checkpoint: Path, state: str) -> None:
    """Read the checkpoint's files into the page cache, or drop the files from the page cache. Rank 0 does this, while
    the other rank waits."""
    import torch.distributed as dist

    if dist.get_rank() == 0:
        for file in checkpoint.iterdir():
            handle = os.open(file, os.O_RDONLY)
            if state == "dropped":
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                while os.read(handle, 1 << 22):
                    pass
            os.close(handle)
    dist.barrier()


def measure_saves(folder: Path, model: Any, optimizer: Any, rounds: int) -> dict[str, Any]:
    """Return the measured values of each round, by variant."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save as torch_save

    from train.checkpoint.load import saved_tensors
    from train.checkpoint.storage.writer import HashingWriter

    found: dict[str, Any] = {variant: [] for variant in SAVES}
    writers = {"hashing": HashingWriter, "torch": FileSystemWriter}
    output = folder / "saved"
    for order in turns(SAVES, rounds):
        for variant in order:
            output.mkdir(exist_ok=True)
            dist.barrier()
            tensors = saved_tensors(model, optimizer)
            writer = writers[variant](output)
            found[variant].append(timed(lambda: torch_save(dict(tensors), storage_writer=writer)))  # noqa: B023
            if dist.get_rank() == 0:
                shutil.rmtree(output)
            dist.barrier()
    return found


def turns(variants: Any, rounds: int) -> Any:
    """Return the order of the variants for each round. Rank 0 also prints the progress."""
    import torch.distributed as dist

    if dist.get_rank() == 0:
        return common.rounds(variants, rounds)
    names = list(variants)
    return [[*names[number % len(names) :], *names[: number % len(names)]] for number in range(rounds)]


def timed(function: Callable[[], Any]) -> dict[str, Any]:
    """Return the seconds of the slowest rank, the CPU seconds of all ranks, and the bytes that each rank read, in total
    and from the disk."""
    import torch.distributed as dist

    before, began, cpu = io_counters(), time.perf_counter(), time.process_time()
    function()
    seconds, cpu_seconds, after = time.perf_counter() - began, time.process_time() - cpu, io_counters()
    each: list[Any] = [None] * dist.get_world_size()
    read = {key: after[key] - before[key] for key in ("rchar", "read_bytes")}
    dist.all_gather_object(each, (seconds, cpu_seconds, read))
    return {
        "seconds": max(seconds for seconds, _, _ in each),
        "cpu_seconds": sum(cpu for _, cpu, _ in each),
        "read": [read for _, _, read in each],
    }


def io_counters() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text().splitlines()
    return {key: int(value) for key, value in (line.split(": ") for line in lines)}


def show(report: dict[str, Any]) -> None:
    print(f"a checkpoint of {report['bytes'] / 1e9:.2f} GB, {RANKS} ranks")
    loads = report["loads"]
    common.show_table(
        [
            load_cells(f"{name}, {state}", loads[variant][state], loads["unverified"][state], report["bytes"])
            for state in STATES
            for variant, name in LOADS.items()
        ]
    )
    common.show_table(
        [save_cells(name, report["saves"][variant], report["saves"]["torch"]) for variant, name in SAVES.items()]
    )


def load_cells(name: str, figures: list[dict[str, Any]], base: list[dict[str, Any]], n_bytes: int) -> dict[str, str]:
    shares = {
        key: max(read[key] for each in figures for read in each["read"]) / n_bytes for key in ("rchar", "read_bytes")
    }
    return {
        "load": name,
        **times(figures),
        "x not verified (CPU, shortest)": ratios(figures, base),
        "read per rank": f"{shares['rchar']:.3f} of all bytes",
        "from the disk": f"{shares['read_bytes']:.3f} of all bytes",
    }


def save_cells(name: str, figures: list[dict[str, Any]], base: list[dict[str, Any]]) -> dict[str, str]:
    return {"save": name, **times(figures), "x torch's writer (CPU, shortest)": ratios(figures, base)}


def times(figures: list[dict[str, Any]]) -> dict[str, str]:
    seconds = [each["seconds"] for each in figures]
    return {"s (min-max)": f"{common.median(seconds)} ({common.spread(seconds)})"}


def ratios(figures: list[dict[str, Any]], base: list[dict[str, Any]]) -> str:
    """The ratios of the wall-clock seconds, of the CPU seconds, and of the shortest rounds. The shortest rounds are
    included because on a virtual machine, an individual load can be many times slower if the host must first provide
    memory."""
    clock, cpu = (
        common.ratio([each[key] for each in figures], [each[key] for each in base])
        for key in ("seconds", "cpu_seconds")
    )
    shortest, other = (min(each["seconds"] for each in variant) for variant in (figures, base))
    return f"{clock:.2f} ({cpu:.2f}, {shortest / other:.2f})"


if __name__ == "__main__":
    sys.exit(main())
