"""Compiles every Triton kernel of a run for A100, H100 and B200, in bf16 and fp32 at DBRX's widths, without a GPU, and
prints a table: registers per thread / spilled bytes per thread / bytes of shared memory per block.

Fails if there are errors, spills, kernels that need more shared memory than the GPU has, or addresses that overflow at
2**31 elements. Addresses in MegaBlocks' kernels can overflow, but runs with such sizes end with an error.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

from collections.abc import Sequence

from scripts.bench import common
from scripts.dev.gate.compiled import why_not_compiled
from scripts.dev.gate.report import gate


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 if all kernels pass, 1 if a kernel fails, and 2 if nothing could be compiled."""
    parser = common.make_parser(__doc__)
    args = parser.parse_args(argv)
    if why := why_not_compiled():
        print(f"error: {why}", file=sys.stderr)
        return 2
    import triton

    rows, notes = gate(every_config=True)
    print(f"Triton {triton.__version__}: registers / spilled bytes / bytes of shared memory, maximum over all configs")
    common.show_table([row.cells() for row in rows])
    for note in notes:
        print(note)
    common.write_json(args.json, {"rows": [row.cells() | {"errors": row.errors} for row in rows], "notes": notes})
    errors = [error for row in rows for error in row.errors]
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
