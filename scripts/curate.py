"""Curates raw text for training, on Spark: removes duplicates, documents of low quality and documents that contain
evaluation data, and shows what was removed and why.

The results are in the folder `output` of the config: documents/ (Parquet, which train.py reads with `hf_name`),
curation.html, and curation.json. Run the command again to resume, or after a change of the config: only changed steps
are repeated.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data.curation.base.report import CurationReport


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a YAML file, such as yamls/curation/stdlib.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the config")
    master = "URL of Spark's master, such as spark://HOST:7077 or 'local[4]' (default: the active session, or else all "
    parser.add_argument("--master", help=f"{master}cores of this machine)")
    parser.add_argument("--check", action="store_true", help="only check the config and everything that it refers to")
    parser.add_argument("--by-source", action="store_true", help="also show the counts of each source")
    parser.add_argument("--rehash", action="store_true", help="hash input files again even if they look unchanged")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error as well")
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)

    from data.base.console import show_error, show_on_console
    from data.base.errors import ConfigError, DataError, settings_written
    from data.curation.curate import PAGE
    from data.curation.page.console import print_tables

    show_on_console()
    try:
        with settings_written(_setting):
            report = _curate(args)
        if report is not None:
            print_tables(report, by_source=args.by_source)
            print(f"documents: {report.output}\npage: {Path(report.output).with_name(PAGE)}")
    except (ConfigError, DataError) as error:
        show_error(error, debug=args.debug)
        return 2
    except KeyboardInterrupt:
        print("stopped: run the same command again to resume", file=sys.stderr)
        return 130
    return 0


def _curate(args: argparse.Namespace) -> "CurationReport | None":
    """Curate, or only check the config, and return None."""
    from data.base.errors import ConfigError
    from data.config.sections import raise_defects
    from data.curation.config import read_config
    from data.curation.curate import check, curate
    from train.config.reading.interpolation import VARIABLES, resolve, unused_variables
    from train.config.reading.yaml_file import read

    written = read(args.config, args.overrides)
    values, unresolved = resolve(written.tree)
    defects = [*(each.defect for each in unresolved), *unused_variables(written.tree)]
    try:
        raise_defects(defects)
        config, steps = read_config({key: value for key, value in values.items() if key != VARIABLES})
        if args.check:
            check(config, steps, rehash=args.rehash)
            print(f"{args.config} is valid ({len(config.sources)} sources, {len(steps)} steps)")
            return None
        return curate(config, steps, master=args.master, rehash=args.rehash)
    except ConfigError as error:
        raise written.placed(error) from None


def _setting(key: str, value: Any) -> str:
    """The text that messages show for a setting: a flag, or a key of the config."""
    from data.base.errors import in_yaml

    if key == "master":
        return "--master" if value is None else f"--master {value}"
    return in_yaml(key, value)


if __name__ == "__main__":
    sys.exit(main())
