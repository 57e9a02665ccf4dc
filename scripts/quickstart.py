"""Trains the tiny DBRX on 2 ranks, exports the model, and tests the export on held-out questions with transformers."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="yamls/finetune/dbrx_tiny.yaml", help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the config, such as device=cpu")
    text = "required share of exact answers (default: %(default)s)"
    parser.add_argument("--at_least", type=float, default=0.8, help=text)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error as well")
    args = parser.parse_intermixed_args(argv)

    from data.base.console import show_error, show_on_console
    from data.base.errors import ConfigError
    from train.config.load import read_config

    show_on_console()
    try:
        config = read_config(str(ROOT / args.config), args.overrides)
        from train.run.quickstart import quickstart

        total = quickstart(args.config, config, args.overrides)["all"]
    except ConfigError as error:
        show_error(error, debug=args.debug)
        return 2
    except KeyboardInterrupt:
        print("stopped: run the same command again to resume from the newest checkpoint", file=sys.stderr)
        return 130
    if total["after"] < args.at_least * total["asked"]:
        answered = f"{total['after']} of {total['asked']} answers are exactly as expected"
        print(f"error: {answered}, which is less than {args.at_least:.0%}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
