"""Prints the English of the repository: docstrings, comments, messages and documentation, each with file and line.

    python scripts/dev/prose.py train/config                # the complete text
    python scripts/dev/prose.py --sample 100 --seed 1       # sentences drawn at random, for a reader to judge

Reads `*.py` (docstrings, comments, strings of several words), `*.md` (paragraphs, headings, table cells) and the
comments of YAML, TOML, shell, Docker and make files. Only files that git tracks are read.
"""

import argparse
import ast
import io
import random
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# The files from which `--sample` draws by default. Tests are excluded, because fewer people read them.
CODE = ("train", "data", "scripts", "yamls", "train.py", "Makefile")
SAMPLED = (*CODE, "docs", "README.md", "CONTRIBUTING.md", "CHANGELOG.md")
COMMENTED = {".yaml", ".yml", ".toml", ".sh", ".sbatch", ".in"}
# Strings with fewer words are names, labels or formats, and not sentences.
MESSAGE_WORDS = 4

WORD = re.compile(r"[^\W\d_]{2,}")
FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
HTML = re.compile(r"<!--.*?-->|</?[a-z][^>\n]*>", re.DOTALL)
PRAGMA = re.compile(r"#\s*(noqa|type:|pyright:|pragma:|fmt:|!)")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`\"'(*\[{])")
LIST_ITEM = re.compile(r"^\s*([-*+]|\d+\.)\s+")


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A piece of English: a docstring, consecutive comment lines, a string, a paragraph, or a table cell."""

    file: Path
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.kind}: {self.text}"


def n_words(text: str) -> int:
    return len(WORD.findall(text))


def docstrings(tree: ast.Module) -> dict[int, ast.Constant]:
    """Return all docstrings by the id of their node, including the strings below fields."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found[id(node.value)] = node.value
    return found


def text_of_string(node: ast.expr) -> str:
    """Return the text of a string. In an f-string, each value is shown as `{expression}`."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of_string(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return "{" + ast.unparse(node.value) + "}"
    return ""


def strings(node: ast.AST, skipped: dict[int, ast.Constant]) -> Iterator[tuple[int, str]]:
    """Yield line and text of each string below `node`, except docstrings. An f-string is one string."""
    if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in skipped:
        yield node.lineno, text_of_string(node)
    if not isinstance(node, ast.JoinedStr):
        for child in ast.iter_child_nodes(node):
            yield from strings(child, skipped)
    else:
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                yield from strings(part.value, skipped)


def runs_of_comments(comments: Iterable[tuple[int, int, str]]) -> Iterator[tuple[int, str]]:
    """Join comments in the same column of consecutive lines. A comment is a tuple of line, column and text."""
    start, last, column, parts = 0, -1, -1, []
    for line, at, text in comments:
        if parts and (line != last + 1 or at != column):
            yield start, " ".join(parts)
            parts = []
        if not parts:
            start = line
        last, column = line, at
        parts.append(text.lstrip("#").strip())
    if parts:
        yield start, " ".join(parts)


def of_python(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, kind and text of each passage in a Python file."""
    tree = ast.parse(source)
    found = docstrings(tree)
    for node in found.values():
        yield node.lineno, "docstring", str(node.value)
    for line, text in strings(tree, found):
        if n_words(text) >= MESSAGE_WORDS and " " in text:
            yield line, "message", text
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = ((*token.start, token.string) for token in tokens if token.type == tokenize.COMMENT)
    for line, text in runs_of_comments(entry for entry in comments if not PRAGMA.match(entry[2])):
        yield line, "comment", text


def of_markdown(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, kind and text of each heading, paragraph, list item and table cell, without code blocks."""
    blank = FENCE.sub(lambda match: "\n" * match[0].count("\n"), source)
    blank = HTML.sub(lambda match: "\n" * match[0].count("\n"), blank)
    start, parts = 0, []
    for number, line in enumerate([*blank.splitlines(), ""], start=1):
        is_table, is_heading = line.lstrip().startswith("|"), line.startswith("#")
        if parts and (not line.strip() or is_table or is_heading or LIST_ITEM.match(line)):
            yield start, "text", " ".join(parts)
            parts = []
        if is_table:
            cells = line.strip().strip("|").split("|")
            yield from ((number, "cell", cell.strip()) for cell in cells if n_words(cell))
        elif is_heading:
            yield number, "heading", line.lstrip("# ")
        elif line.strip():
            start = start if parts else number
            parts.append(LIST_ITEM.sub("", line).strip().removeprefix("> "))


def of_comments(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield line, kind and text of the comments in a file in which `#` starts a comment."""
    comments = []
    for number, line in enumerate(source.splitlines(), start=1):
        match = re.search(r"(?:^|\s)(##? .*)", line)
        if match:
            comments.append((number, match.start(1), match[1]))
    for line, text in runs_of_comments(comments):
        yield line, "comment", text


def passages(file: Path) -> Iterator[Passage]:
    """Yield the English text in one file. The path is relative to the repository. Files of other kinds have no
    passages."""
    if file.suffix == ".py":
        read = of_python
    elif file.suffix == ".md":
        read = of_markdown
    elif file.suffix in COMMENTED or file.name in ("Makefile", "Dockerfile"):
        read = of_comments
    else:
        return
    for line, kind, text in sorted(read((ROOT / file).read_text("utf-8"))):
        yield Passage(file=file, line=line, kind=kind, text=" ".join(text.split()))


def tracked(paths: Iterable[str]) -> list[Path]:
    """Return the files below `paths` that git tracks, sorted, relative to the repository."""
    command = ["git", "ls-files", "--", *paths]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [Path(line) for line in sorted(listed.splitlines()) if (ROOT / line).is_file()]


def sentences(passage: Passage) -> Iterator[Passage]:
    """Yield the sentences of a passage that have at least `MESSAGE_WORDS` words. Each is a passage with the same file
    and line."""
    for text in SENTENCE_END.split(passage.text):
        if n_words(text) >= MESSAGE_WORDS:
            yield Passage(file=passage.file, line=passage.line, kind=passage.kind, text=text)


def sample(size: int, seed: int, paths: Iterable[str] = SAMPLED) -> list[Passage]:
    """Return `size` random sentences of the files below `paths`, drawn without replacement."""
    every = [sentence for file in tracked(paths) for passage in passages(file) for sentence in sentences(passage)]
    return random.Random(seed).sample(every, min(size, len(every)))


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="*", help="files and folders to read (default: code, configurations and docs)")
    parser.add_argument("--sample", type=int, metavar="N", help="print N sentences drawn at random instead of all text")
    parser.add_argument("--seed", type=int, default=0, help="seed of --sample (default: 0)")
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> None:
    options = parse_args(args)
    paths = options.paths or SAMPLED
    if options.sample:
        for number, sentence in enumerate(sample(options.sample, options.seed, paths), start=1):
            print(f"{number}. {sentence}")
    else:
        for file in tracked(paths):
            for passage in passages(file):
                print(passage)


if __name__ == "__main__":
    sys.exit(main())
