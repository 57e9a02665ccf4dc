"""Turns texts into MDS rows for pretraining: tokenized, laid end to end, and cut every max_seq_len tokens."""

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from data.preparation.convert import convert_text, main_of, text_parser

    return main_of(text_parser(__doc__), convert_text)(argv)


if __name__ == "__main__":
    sys.exit(main())
