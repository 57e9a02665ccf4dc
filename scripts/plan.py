"""Predicts the requirements of a run: parameters, FLOPs, memory, traffic, and disk space for checkpoints.
--gpu also predicts times, --search searches for faster settings, --simulate measures memory and traffic of the real
code, and --data shows which rows the run will read."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import os
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data.base.durations import Clock
    from train.config.schema import TrainConfig


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)

    from data.base.console import show_error, show_on_console
    from data.base.errors import ConfigError, DataError

    show_on_console()
    try:
        _plan(args)
    except (ConfigError, DataError) as error:
        show_error(error, debug=args.debug)
        return 2
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a YAML file for train.py")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the config")
    parser.add_argument("--nodes", type=int, help="number of nodes (default: 1)")
    parser.add_argument("--gpus", type=int, help="GPUs (and ranks) per node (default: 8 with --gpu, otherwise 1)")
    parser.add_argument(
        "--gpu", help="predict times for this GPU: a name such as h100, or a YAML file that describes a GPU"
    )
    parser.add_argument("--search", action="store_true", help="with --gpu: search for faster settings")
    parser.add_argument("--simulate", action="store_true", help="simulate a step of one rank, without reading data")
    parser.add_argument(
        "--data", action="store_true", help="prepare the data if necessary, and show streams and stages"
    )
    parser.add_argument("--png", type=Path, help="with --data: file for the plot of the mixture (default: plan.png)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error as well")
    return parser.parse_intermixed_args(argv)


def _plan(args: argparse.Namespace) -> None:
    from data.base.errors import ConfigError
    from data.base.paths import refuse_path_arguments
    from train.checkpoint.save_folder import local_folder, run_name_of
    from train.planning.checks import read_checked
    from train.planning.cluster.machines import make_cluster
    from train.planning.cluster.plan import check_fit, plan_tables, search_tables
    from train.planning.summary import checkpoints_line, config_clock, export_line, snapshot_line

    refuse_path_arguments(args, "--png")
    if args.png is not None and not args.data:
        raise ConfigError("--png needs --data, because the plot shows the mixture of the data: add --data")
    if args.search and args.gpu is None:
        raise ConfigError("--search needs --gpu, because times depend on the GPU: add --gpu h100")
    cluster = make_cluster(args.nodes, args.gpus, args.gpu)
    config = read_checked(args.config, args.overrides, cluster.ranks)
    folder = local_folder(config, run_name_of(config))
    clock = _data(config, folder, args.png or Path("plan.png")) if args.data else config_clock(config)
    _print(*plan_tables(config, cluster, clock.max_batches if clock is not None else None))
    if folder is not None and config.save_async:
        _print(snapshot_line(config, cluster.ranks, cluster.gpus))
    if folder is not None:
        _print(checkpoints_line(config, folder, cluster.ranks, clock))
    _print(export_line(config), *search_tables(config, cluster, always=args.search))
    check_fit(config, cluster)
    if args.simulate:
        # These modules are imported only here, because they import torch and Composer, which is slow.
        from train.simulation.simulate import simulate
        from train.simulation.tables import simulation_tables

        _print(*simulation_tables(config, simulate(config, cluster.ranks)))


def _data(config: "TrainConfig", folder: Path | None, picture: Path) -> "Clock":
    """Show the row plan of the run, and return the clock that converts its durations."""
    from matplotlib.backend_bases import FigureCanvasBase

    from data.base.errors import ConfigError
    from data.tokenization.build import build_tokenizer
    from train.checkpoint.remote.staging import planned_folder
    from train.checkpoint.save_folder import run_name_of
    from train.planning.run_data import open_data
    from train.planning.tables import draw, stages_table, streams_table
    from train.weights.changes import change_lines, check_rows
    from train.weights.start import find_start

    kinds = FigureCanvasBase.get_supported_filetypes()
    if picture.suffix[1:] not in kinds or picture.is_dir():
        raise ConfigError(f"--png is {str(picture)!r}, but it must be a file that ends in .png (or {', '.join(kinds)})")
    if not os.access(picture.parent, os.W_OK):
        raise ConfigError(f"--png is {str(picture)!r}, but its folder does not exist or is not writable")
    with planned_folder(config, run_name_of(config)) if folder is not None else nullcontext() as planned:
        start = find_start(config, planned)
        state = start.data_state if start is not None else None
        run = open_data(config, build_tokenizer(config.tokenizer), state, check=partial(check_rows, start, config))
        if start is not None:
            print("\n".join([f"starting from {start.path}", *change_lines(start, config)]))
    _print(streams_table(run), stages_table(run, config), *run.plan.notes)
    draw(run, picture)
    print(f"wrote the plot of the planned mixture to {picture}")
    return run.clock


def _print(*things: object) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    for thing in things:
        console.print(thing)


if __name__ == "__main__":
    sys.exit(main())
