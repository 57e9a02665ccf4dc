"""Shows the training data: rows as text with trained tokens in green, lengths, duplicates, and eval rows that also
occur in the training data.

With --html, writes one HTML page that also shows the mixture, the truncated and dropped records, and the longest and
oddest documents. With --verify, only the size and hash of every shard are checked (exit code 1 if one is missing,
truncated or corrupt).
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data.config.dataset import DatasetConfig
    from data.inspection.page.page import Plan
    from data.loading.rows import Rows
    from data.tokenization.tokenizer import Tokenizer
    from train.config.schema import TrainConfig


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a YAML file for train.py")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the config")
    parser.add_argument("--rows", type=int, help="rows shown from each source (default: 2; with --html: 5)")
    parser.add_argument(
        "--first", type=int, metavar="ROW", help="first row to show (default: 0; with --html: rows are drawn at random)"
    )
    parser.add_argument(
        "--max-rows",
        type=int,
        metavar="N",
        help="maximum number of rows read from each source for statistics and duplicates (default: all rows; "
        "with --html: rows with about 8 million positions)",
    )
    outputs = parser.add_mutually_exclusive_group()
    outputs.add_argument("--html", type=Path, metavar="FILE", help="write one HTML page to this file instead")
    outputs.add_argument("--png", type=Path, help="also write a histogram of document lengths to this file")
    outputs.add_argument("--verify", action="store_true", help="only check the size and hash of every shard")
    parser.add_argument("--rehash", action="store_true", help="hash input files again even if they look unchanged")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error as well")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)

    from data.base.console import show_error, show_on_console
    from data.base.errors import ConfigError, DataError
    from data.tokenization.build import build_tokenizer
    from train.config.load import read_config

    show_on_console()
    try:
        _check(args)
        config = read_config(args.config, args.overrides)
        tokenizer = build_tokenizer(config.tokenizer)
        if args.verify:
            return _verify(_sources(config), tokenizer, rehash=args.rehash)
        if args.html is not None:
            _write_page(config, tokenizer, args)
        else:
            _inspect(_sources(config), tokenizer, args)
    except (ConfigError, DataError) as error:
        show_error(error, debug=args.debug)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _check(args: argparse.Namespace) -> None:
    from data.base.errors import ConfigError
    from data.base.paths import refuse_output

    for name, least in (("rows", 0), ("first", 0), ("max_rows", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}, but it must be at least {least}")
    for flag, path in (("--html", args.html), ("--png", args.png)):
        if path is not None:
            refuse_output(flag, path, args.config)


def _sources(config: "TrainConfig") -> "dict[str, DatasetConfig]":
    """The config of each source by its name, such as `train`, `train.code` or `eval`."""
    loaders = {"train": config.train_loader, "eval": config.eval_loader}
    return {
        f"{kind}.{stream}" if stream else kind: dataset
        for kind, loader in loaders.items()
        if loader is not None
        for stream, dataset in loader.dataset.each_stream().items()
    }


def _open(name: str, dataset: "DatasetConfig", tokenizer: "Tokenizer", *, rehash: bool) -> "Rows":
    from data.base.errors import under
    from data.loading.opening import find_source, open_rows

    with under(_key(name)):
        return open_rows(dataset, tokenizer, find_source(dataset, rehash=rehash))


def _progress(name: str) -> "Callable[[Iterable[int]], Iterable[int]]":
    from tqdm import tqdm

    return lambda numbers: tqdm(numbers, desc=f"Reading {name}", delay=2)


def _inspect(sources: "dict[str, DatasetConfig]", tokenizer: "Tokenizer", args: argparse.Namespace) -> None:
    from rich.console import Console

    from data.inspection.documents import spread
    from data.inspection.duplicates import duplicate_lines, overlap_lines
    from data.inspection.lengths import draw_histogram, histogram_lines, summary_lines
    from data.inspection.row_text import show_row
    from data.inspection.survey import survey_rows

    console = Console(highlight=False, soft_wrap=True)
    first, n_shown = args.first or 0, 2 if args.rows is None else args.rows
    surveys = []
    for name, dataset in sources.items():
        rows = _open(name, dataset, tokenizer, rehash=args.rehash)
        for number in range(first, min(first + n_shown, rows.n_rows)):
            console.print(show_row(number, rows.read(number), tokenizer, marks=console.color_system is None))
        if first >= rows.n_rows:
            console.print(f"{name} has {rows.n_rows:,} rows: there is no row {first:,} (--first)", markup=False)
        numbers = spread(rows.n_rows, rows.n_rows if args.max_rows is None else args.max_rows)
        surveys.append(survey_rows(name, rows, _progress(name), numbers=numbers))
        lines = [*summary_lines(surveys[-1]), *histogram_lines(surveys[-1].lengths)]
        console.print("\n".join(lines), markup=False)
    for survey in surveys:
        console.print("\n".join(duplicate_lines(survey)), markup=False)
    for known in surveys:
        for asked in surveys:
            if known.name.startswith("train") and asked.name.startswith("eval"):
                console.print("\n".join(overlap_lines(known, asked)), markup=False)
    if args.png is not None:
        draw_histogram(surveys, args.png)
        console.print(f"wrote the histogram of lengths to {args.png}", markup=False)


def _write_page(config: "TrainConfig", tokenizer: "Tokenizer", args: argparse.Namespace) -> None:
    from data.inspection.page.page import Options, write_page
    from data.inspection.page.source import inspect_source
    from data.secrets.redaction import redacted

    sources = [
        inspect_source(
            name, _open(name, dataset, tokenizer, rehash=args.rehash), tokenizer, args.max_rows, _progress(name)
        )
        for name, dataset in _sources(config).items()
    ]
    options = Options(
        title=f"Data of {config.run_name or Path(args.config).stem}",
        config=redacted(" ".join((args.config, *args.overrides))),
        seed=config.seed,
        n_rows=5 if args.rows is None else args.rows,
        first=args.first,
    )
    plan = _plan(config, {source.name: source.rows for source in sources})
    write_page(options, sources, plan, tokenizer, args.html)
    print(f"wrote {args.html}")


def _plan(config: "TrainConfig", rows: "dict[str, Rows]") -> "Plan | str":
    """The row plan of a new run, or the reason why the rows cannot be planned, which the page then shows."""
    from data.base.errors import ConfigError, DataError
    from data.inspection.page.page import Plan
    from train.planning.run_data import plan_data

    prefix = "train"
    streams = {
        name.removeprefix(prefix).removeprefix("."): each for name, each in rows.items() if name.startswith(prefix)
    }
    try:
        run = plan_data(config, streams)
    except (ConfigError, DataError) as error:
        return str(error)
    return Plan(rows=run.plan, clock=run.clock)


def _key(name: str) -> str:
    """Return the config key of the source."""
    kind, _, stream = name.partition(".")
    return f"{kind}_loader.dataset" + (f".streams.{stream}" if stream else "")


def _verify(sources: "dict[str, DatasetConfig]", tokenizer: "Tokenizer", *, rehash: bool) -> int:
    from data.base.errors import under
    from data.inspection.verification import verification_lines
    from data.loading.opening import find_source
    from data.loading.verify import verify
    from data.mds.folder import MdsFolder
    from data.preparation.prepare import prepare
    from data.sources.mds import MdsSource

    broken = 0
    for name, dataset in sources.items():
        with under(_key(name)):
            source = find_source(dataset, rehash=rehash)
            mds = source.mds if isinstance(source, MdsSource) else source
            found = [verify(mds)] if isinstance(mds, MdsFolder) else []
            if not isinstance(source, MdsFolder) and not any(each.broken for each in found):
                found.append(verify(prepare(dataset, tokenizer, source)))
        for each in found:
            broken += len(each.broken)
            print("\n".join(verification_lines(each)))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
