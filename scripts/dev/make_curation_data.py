"""Writes raw text with known defects, to try a curation (yamls/curation/stdlib.yaml) and to measure what it finds.

The text comes from this installation of Python: docstrings of the standard library, descriptions of installed packages
and their licenses. Exact duplicates, near duplicates, pages without content, lines of banners, personal data and parts
of evaluation sets are added. Written are raw/SOURCE.jsonl, evals/NAME.jsonl, and planted.json with the location of
everything that was added. For the same installation, the files depend only on the flags.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(".cache/curation"), help="default: %(default)s")
    parser.add_argument(
        "--limit", type=int, default=0, metavar="N", help="read only N modules and N packages (default: all)"
    )
    parser.add_argument("--seed", type=int, default=17, help="default: %(default)s")
    args = parser.parse_args(argv)

    from scripts.dev.curation.plant import plant, write
    from scripts.dev.curation.texts import collect

    example = plant(collect(args.limit or sys.maxsize), args.seed)
    planted = write(example, args.out)
    for source, documents in example.raw.items():
        n_chars = sum(len(each.text) for each in documents)
        print(f"{args.out}/raw/{source}.jsonl: {len(documents):,} documents, {n_chars:,} characters")
    for name, records in example.evals.items():
        print(f"{args.out}/evals/{name}.jsonl: {len(records):,} records")
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in planted["planted"].items())
    print(f"{args.out}/planted.json: {kinds}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
