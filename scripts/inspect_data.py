"""Shows the training data: rows as text with trained tokens in green, lengths, duplicates, and eval rows that also
occur in the training data.

With --verify, only the size and hash of every shard are checked (exit code 1 if one is missing, truncated or corrupt).
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data.config.dataset import DatasetConfig
    from data.tokenization.tokenizer import Tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a YAML file for train.py")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the config")
    parser.add_argument("--rows", type=int, default=2, help="rows shown from each source (default: 2)")
    parser.add_argument("--first", type=int, default=0, metavar="ROW", help="first row to show (default: 0)")
    parser.add_argument("--png", type=Path, help="also write a histogram of document lengths to this file")
    parser.add_argument("--verify", action="store_true", help="only check the size and hash of every shard")
    parser.add_argument("--rehash", action="store_true", help="hash input files again even if they look unchanged")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error as well")
    args = parser.parse_intermixed_args(argv)

    from data.base.console import show_error, show_on_console
    from data.base.errors import ConfigError, DataError
    from data.base.paths import refuse_path_arguments
    from data.tokenization.build import build_tokenizer
    from train.config.load import read_config

    show_on_console()
    try:
        refuse_path_arguments(args, "--png")
        if args.rows < 0 or args.first < 0:
            raise ConfigError(f"--rows is {args.rows} and --first is {args.first}, but neither can be negative")
        if args.png is not None and not os.access(args.png.parent, os.W_OK):
            raise ConfigError(f"--png is {str(args.png)!r}, but its folder does not exist or is not writable")
        config = read_config(args.config, args.overrides)
        loaders = {"train": config.train_loader, "eval": config.eval_loader}
        sources = {
            f"{kind}.{stream}" if stream else kind: dataset
            for kind, loader in loaders.items()
            if loader is not None
            for stream, dataset in loader.dataset.each_stream().items()
        }
        tokenizer = build_tokenizer(config.tokenizer)
        if args.verify:
            return _verify(sources, tokenizer, rehash=args.rehash)
        _inspect(sources, tokenizer, range(args.first, args.first + args.rows), args.png, rehash=args.rehash)
    except (ConfigError, DataError) as error:
        show_error(error, debug=args.debug)
        return 2
    return 0


def _inspect(
    sources: "dict[str, DatasetConfig]", tokenizer: "Tokenizer", shown: range, png: Path | None, *, rehash: bool
) -> None:
    from rich.console import Console
    from tqdm import tqdm

    from data.base.errors import under
    from data.inspection.duplicates import duplicate_lines, overlap_lines
    from data.inspection.lengths import draw_histogram, histogram_lines, summary_lines
    from data.inspection.row_text import show_row
    from data.inspection.survey import survey_rows
    from data.loading.opening import find_source, open_rows

    console = Console(highlight=False, soft_wrap=True)
    surveys = []
    for name, dataset in sources.items():
        with under(_key(name)):
            rows = open_rows(dataset, tokenizer, find_source(dataset, rehash=rehash))
        for number in range(shown.start, min(shown.stop, rows.n_rows)):
            console.print(show_row(number, rows.read(number), tokenizer, marks=console.color_system is None))
        surveys.append(
            survey_rows(name, rows, lambda numbers, name=name: tqdm(numbers, desc=f"Reading {name}", delay=2))
        )
        lines = [*summary_lines(surveys[-1]), *histogram_lines(surveys[-1].lengths)]
        console.print("\n".join(lines), markup=False)
    for survey in surveys:
        console.print("\n".join(duplicate_lines(survey)), markup=False)
    for known in surveys:
        for asked in surveys:
            if known.name.startswith("train") and asked.name.startswith("eval"):
                console.print("\n".join(overlap_lines(known, asked)), markup=False)
    if png is not None:
        draw_histogram(surveys, png)
        console.print(f"wrote the histogram of lengths to {png}", markup=False)


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
