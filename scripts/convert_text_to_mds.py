"""Converts texts to MDS rows for pretraining: tokenized, concatenated, and split every max_seq_len tokens."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    from data.preparation.conversion.command_line import main_of, text_parser
    from data.preparation.conversion.convert import convert_text

    return main_of(text_parser(__doc__), convert_text)(argv)


if __name__ == "__main__":
    sys.exit(main())
