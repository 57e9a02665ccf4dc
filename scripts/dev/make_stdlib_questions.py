"""Writes training questions and held-out questions about functions of Python's standard library, as {prompt, response}.

The questions in questions.jsonl ask for a function's name, given its docstring, or for its parameters, given its
signature. The questions in kinds.jsonl ask whether a name belongs to a class, a function or a constant. The questions
in heldout-*.jsonl are about the modules that make_stdlib_data.py --heldout holds out, and only about names that do not
occur in training questions.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import itertools
import json
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(".cache/stdlib"), help="default: .cache/stdlib")
    parser.add_argument("--modules", type=int, default=0, help="read only the first N modules (default: all)")
    parser.add_argument("--heldout", type=int, default=20, metavar="N", help="hold out every N-th module (default: 20)")
    args = parser.parse_args(argv)

    from scripts.dev.example.questions import make_questions
    from scripts.dev.make_stdlib_data import modules

    args.out.mkdir(parents=True, exist_ok=True)
    files = itertools.islice(modules(), args.modules or None)
    for name, questions in make_questions(files, args.heldout).items():
        lines = [json.dumps(question) + "\n" for question in questions]
        (args.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{args.out / name}.jsonl: {len(questions):,} questions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
