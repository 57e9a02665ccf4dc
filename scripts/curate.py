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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data.curation.config import CurationConfig, NamedStep


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
    from data.base.errors import ConfigError, DataError
    from data.curation.curate import PAGE, check, curate
    from data.curation.page.console import print_tables

    show_on_console()
    try:
        config, steps = _read(args.config, args.overrides)
        if args.check:
            check(config, steps, rehash=args.rehash)
            print(f"{args.config} is valid: {len(config.sources)} sources, {len(steps)} steps")
            return 0
        report = curate(config, steps, master=args.master, rehash=args.rehash)
        print_tables(report, by_source=args.by_source)
        print(f"documents: {report.output}\npage: {Path(config.output) / PAGE}")
    except (ConfigError, DataError) as error:
        show_error(error, debug=args.debug)
        return 2
    except KeyboardInterrupt:
        print("stopped: run the same command again to resume", file=sys.stderr)
        return 130
    return 0


def _read(path: str, overrides: Sequence[str]) -> "tuple[CurationConfig, list[NamedStep]]":
    from data.base.errors import ConfigError, Problems
    from data.curation.config import read_config
    from train.config.reading.interpolation import VARIABLES, resolve, unused_variables
    from train.config.reading.yaml_file import read

    written = read(path, overrides)
    values, unresolved = resolve(written.tree)
    defects = [each.defect for each in unresolved] + unused_variables(written.tree)
    problems = Problems()
    for defect in defects:
        with problems.collect():
            raise ConfigError(defect.text, key=defect.key)
    try:
        with problems.collect():
            return read_config({key: value for key, value in values.items() if key != VARIABLES})
        problems.raise_if_any()
    except ConfigError as error:
        raise written.placed(error) from None
    raise AssertionError


if __name__ == "__main__":
    sys.exit(main())
