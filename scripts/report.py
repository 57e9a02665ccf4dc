"""Writes one HTML file about one or several runs: curves, experts, data, config, events, samples. The file works
offline.

report.py runs/mine                        writes report.html in the log folder, also during training
report.py runs/mine runs/other             writes ./report-mine-other.html, with both runs in the same charts
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)

    from data.base.console import show_error, show_on_console
    from data.base.errors import ConfigError, DataError
    from train.report.report import write_report

    show_on_console()
    try:
        print(write_report(args.runs, args.output))
    except (ConfigError, DataError) as error:
        show_error(error, debug=args.debug)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="a run's save_folder or log_folder, its parent folder, or its metrics.jsonl",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the file to write")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
