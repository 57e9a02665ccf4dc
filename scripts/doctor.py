"""Checks what a run needs on every node: software, GPUs, folders, network, and the links between ranks.

  python scripts/doctor.py                                    one node, without a config
  python scripts/doctor.py yamls/finetune/dbrx.yaml           also tokenizer, hub data, folders, memory and kernels
  composer -n 8 scripts/doctor.py CONFIG key=value ...        also the links between ranks; torchrun and srun work too

The exit code is 0 if all checks passed, 1 if a check failed, and 2 after an error. docs/doctor.md explains each row.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import os
import signal
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="a YAML file for train.py")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the config")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table to this JSON file")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="time limit of each check, and of each wait for another rank (default: %(default)g)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error as well")
    args = parser.parse_intermixed_args(argv)

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from data.base.console import show_on_console
    from data.base.errors import ConfigError
    from data.base.paths import refuse_path_arguments
    from data.base.workers import signalled_at_end_of
    from train.config.load import load_config
    from train.distributed.slurm import ranks_of_srun
    from train.doctor.examine import examine
    from train.doctor.ranks import place_of
    from train.supervision.error_report import report

    show_on_console()
    try:
        refuse_path_arguments(args, "config", "--json")
        os.environ.update(ranks_of_srun(os.environ))
        if "RANK" in os.environ:
            signalled_at_end_of(os.getppid(), signal.SIGTERM)
        if not args.seconds > 0:
            raise ConfigError(f"--seconds is {args.seconds:g}, but it must be above 0")
        loaded = load_config(args.config, args.overrides) if args.config is not None else None
        return 0 if examine(loaded, place_of(os.environ), seconds=args.seconds, file=args.json) else 1
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if (code := report(error, debug=args.debug)) is None:
            raise
        return code


if __name__ == "__main__":
    code = main()
    from train.doctor.check import is_any_check_running

    if is_any_check_running():
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
