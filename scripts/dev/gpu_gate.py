"""Compiles every Triton kernel that a run launches for A100, H100 and B200, in bf16 and fp32 at DBRX's widths, without
a GPU, and prints a table: registers a thread / spilled bytes a thread / bytes of shared memory a block.

Fails on an error, on spills, on more shared memory than the GPU has, and on addresses of ours that overflow from 2**31
elements on. MegaBlocks' do, and such sizes are refused before they are launched.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Only the repository's root: in these folders evaluate.py, for one, would hide the package of the same name.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

from collections.abc import Sequence

from scripts.bench import common
from scripts.dev.gate.compiled import why_not_compiled
from scripts.dev.gate.report import gate


def main(argv: Sequence[str] | None = None) -> int:
    """0: all kernels pass; 1: one does not; 2: nothing could be compiled."""
    parser = common.make_parser(__doc__)
    args = parser.parse_args(argv)
    if why := why_not_compiled():
        print(f"error: {why}", file=sys.stderr)
        return 2
    import triton

    rows, notes = gate(every_config=True)
    print(f"Triton {triton.__version__}: registers / spilled bytes / bytes of shared memory, most of all configs")
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
