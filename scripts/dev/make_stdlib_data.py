"""Writes the text of Python's standard library as three JSONL files: code, docstrings and comments.

The standard library is on every machine, so mixtures and curricula can be tried without a download. Each line is one
module: {"text": ...}. With --heldout N, every N-th module is written to heldout-code.jsonl, heldout-docstrings.jsonl
and heldout-comments.jsonl instead.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Import modules only from the repository's root, because scripts/evaluate.py would hide the package `evaluate`.
sys.path[:] = [str(ROOT), *(path for path in sys.path if not Path(path).resolve().is_relative_to(ROOT / "scripts"))]

import argparse
import ast
import io
import itertools
import json
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence

SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
STREAMS = ("code", "docstrings", "comments")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(".cache/stdlib"), help="default: .cache/stdlib")
    parser.add_argument("--modules", type=int, default=0, help="read only the first N modules (default: all)")
    parser.add_argument(
        "--heldout", type=int, default=0, metavar="N", help="hold out every N-th module (default: 0, which means none)"
    )
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    prefixes = ("", "heldout-") if args.heldout else ("",)
    texts: dict[str, list[str]] = {prefix + name: [] for prefix in prefixes for name in STREAMS}
    for number, file in enumerate(itertools.islice(modules(), args.modules or None), start=1):
        prefix = "heldout-" if args.heldout and number % args.heldout == 0 else ""
        for name, text in split(file.read_text(encoding="utf-8")).items():
            if text.strip():
                texts[prefix + name].append(text)
    for name, parts in texts.items():
        lines = [json.dumps({"text": text}) + "\n" for text in parts]
        (args.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{args.out / name}.jsonl: {len(parts):,} texts, {sum(map(len, parts)):,} characters")
    return 0


def modules() -> Iterator[Path]:
    """Return the source files of the standard library, sorted by path, excluding tests and files with invalid
    syntax."""
    root = Path(sysconfig.get_paths()["stdlib"])
    folders = [folder for folder in root.iterdir() if folder.is_dir() and folder.name not in SKIPPED]
    found = [*root.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    files = [file for file in sorted(found) if not SKIPPED & set(file.relative_to(root).parts)]
    return filter(_reads, files)


def _reads(file: Path) -> bool:
    try:
        ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # a few files contain invalid syntax
        return False
    return True


def split(source: str) -> dict[str, str]:
    """Split a module into code, docstrings and comments, each in the original order. The code contains no docstrings or
    comments."""
    lines = source.split("\n")  # ast does not end a line at a form feed
    docstrings = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if text:
            docstrings.append(text)
            first = node.body[0]
            for number in range(first.lineno - 1, first.end_lineno or first.lineno):
                lines[number] = ""
    comments = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.append(token.string.lstrip("#! ").rstrip())
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    code = [line for line in lines if line.strip()]
    return dict(zip(STREAMS, ("\n".join(code), "\n\n".join(docstrings), "\n".join(comments)), strict=True))


if __name__ == "__main__":
    sys.exit(main())
