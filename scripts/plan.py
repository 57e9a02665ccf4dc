"""Says what a run will need, before it is started: parameters, memory a rank, space for checkpoints and, with --data,
the plan of its rows."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Only the repository's root: in these folders evaluate.py, for one, would hide the package of the same name.
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a YAML file, as train.py takes it")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes of it")
    parser.add_argument("--ranks", type=int, default=1, help="ranks that the memory is cut for (default: 1)")
    parser.add_argument("--data", action="store_true", help="prepare the data if need be, and show streams and stages")
    parser.add_argument("--png", type=Path, help="with --data: where the picture of the mix goes (default: plan.png)")
    args = parser.parse_intermixed_args(argv)

    from data.base.console import show_on_console
    from data.base.errors import ConfigError, DataError
    from data.base.paths import refuse_path_arguments
    from train.checkpoint.save_folder import local_folder, run_name_of
    from train.config.load import read_config
    from train.config.ranks import check_kernel_sizes
    from train.planning.summary import checkpoints_line, memory_lines, parameters_line, snapshot_line

    show_on_console()
    try:
        refuse_path_arguments(args, "--png")
        if args.ranks < 1:
            raise ConfigError(f"--ranks is {args.ranks}, but there must be at least 1")
        if args.png is not None and not args.data:
            raise ConfigError("--png is given without --data, but the picture is of the data")
        config = read_config(args.config, args.overrides)
        try:
            check_kernel_sizes(config, args.ranks)
        except ValueError as error:
            raise ConfigError(f"{args.config}: {error}") from None
        _print(parameters_line(config.model, config.lora), *memory_lines(config, args.ranks))
        folder = local_folder(config, run_name_of(config))
        clock = _data(config, folder, args.png or Path("plan.png")) if args.data else None
        if folder is not None:
            if config.save_async:
                _print(snapshot_line(config, args.ranks))
            _print(checkpoints_line(config, folder, args.ranks, clock))
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _data(config: "TrainConfig", folder: Path | None, picture: Path) -> "Clock":
    """Shows the plan of the run's rows, and gives the clock that counts them."""
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
        raise ConfigError(f"--png is {str(picture)!r}, but its folder cannot be written")
    with planned_folder(config, run_name_of(config)) if folder is not None else nullcontext() as planned:
        start = find_start(config, planned)
        state = start.data_state if start is not None else None
        run = open_data(config, build_tokenizer(config.tokenizer), state, check=partial(check_rows, start, config))
        if start is not None:
            print("\n".join([f"starting from {start.path}", *change_lines(start, config)]))
    _print(streams_table(run), stages_table(run, config), *run.plan.notes)
    draw(run, picture)
    print(f"the planned mix is drawn in {picture}")
    return run.clock


def _print(*things: object) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160)
    for thing in things:
        console.print(thing)


if __name__ == "__main__":
    sys.exit(main())
