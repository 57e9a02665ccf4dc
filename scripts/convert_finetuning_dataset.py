"""Turns a dataset of prompts and responses, or of conversations, into MDS folders: one for each split."""

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from data.preparation.convert import convert_finetuning, finetuning_parser, main_of

    return main_of(finetuning_parser(__doc__), convert_finetuning)(argv)


if __name__ == "__main__":
    sys.exit(main())
