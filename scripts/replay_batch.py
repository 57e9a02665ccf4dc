"""Recomputes a batch whose loss or gradient was not finite, and compares the loss of each rank bit for bit.

  python scripts/replay_batch.py runs/mine/checkpoints/incidents/ba700
  composer -n 2 scripts/replay_batch.py runs/mine/checkpoints/incidents/ba700      with as many ranks as in the run

Training starts from the newest checkpoint before the batch and ends at the batch; nothing is saved. The exit code is 0
if all losses are equal, and 1 otherwise. After an error, the exit code is the same as that of train.py.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.run.replay import Replayed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("incident", type=Path, help="a folder in SAVE_FOLDER/incidents")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error as well")
    args = parser.parse_args(argv)

    # Without this variable, torch logs a C++ stack for each connection to a rank that has ended. torch reads the
    # variable when it is imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from data.base.console import logger, show_on_console
    from data.base.paths import refuse_path_arguments
    from train.distributed.process_group import sharing_failures
    from train.distributed.slurm import ranks_of_srun
    from train.supervision.error_report import report

    show_on_console()
    try:
        os.environ.update(ranks_of_srun(os.environ))
        refuse_path_arguments(args, "incident")
        with sharing_failures():  # some ranks may fail to read their batches
            from train.run.replay import replay

            ranks = replay(args.incident)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if (code := report(error, debug=args.debug)) is None:
            raise
        return code
    for line in describe(ranks):
        logger.info(line)
    return 0 if all(rank.is_same for rank in ranks) else 1


def describe(ranks: Sequence["Replayed"]) -> list[str]:
    lines = []
    for number, rank in enumerate(ranks):
        rows = "the same rows" if rank.same_rows else "DIFFERENT ROWS"
        random = "the same random state" if rank.same_random else "DIFFERENT RANDOM STATE"
        equal = "equal" if rank.recorded == rank.replayed else "NOT EQUAL"
        losses = f"recorded {_shown(rank.recorded)}, replayed {_shown(rank.replayed)}: {equal}"
        lines.append(f"rank {number}: loss {losses}; {rows}, {random}")
    if all(rank.is_same for rank in ranks):
        lines.append("the recorded and the recomputed loss are equal bit for bit on all ranks")
    elif all(math.isfinite(float.fromhex(rank.replayed)) for rank in ranks):
        lines.append("the recomputed loss is finite: neither the weights nor the rows explain the recorded loss")
    return lines


def _shown(loss: str) -> str:
    return f"{float.fromhex(loss)!r} ({loss})"


if __name__ == "__main__":
    sys.exit(main())
