"""The shell commands in the fenced blocks of Markdown pages."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHELLS = {"bash", "sh", "shell", "zsh"}
_BLOCK = re.compile(
    r"^(?P<indent> *)(?P<fence>```+)(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)(?P=fence) *$", re.M | re.S
)
_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")
_TOKEN = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*"|(?<!\S)#[^\n]*|\\\n *|\\.|&&|.""", re.S)
_COMPOUND = re.compile(r"(for|while|until|if|case)\s")


@dataclass(frozen=True)
class FencedCommand:
    """One command of a page."""

    page: str
    line: int
    """The line of the page, counted from 1, at which the command begins."""
    text: str
    """The command on one line, without its comment. The text of a here-document follows on further lines."""


def commands_of(page: str, markdown: str) -> Iterator[FencedCommand]:
    """Return the commands of a page: the lines of shell blocks, and the lines after `$ ` in blocks without a
    language."""
    for block in _BLOCK.finditer(markdown):
        language = block["language"].strip().split(" ")[0]
        first = markdown.count("\n", 0, block.start("text")) + 1
        indent = len(block["indent"])
        lines = [line[indent:] if line[:indent].isspace() else line for line in block["text"].split("\n")]
        if language in SHELLS:
            for line, text in split_shell("\n".join(lines)):
                yield FencedCommand(page, first + line, text)
        elif language in ("", "text", "console"):
            for number, line in enumerate(lines):
                if line.startswith("$ "):
                    for _, text in split_shell(line[2:]):
                        yield FencedCommand(page, first + number, text)


def split_shell(script: str) -> Iterator[tuple[int, str]]:
    """The commands of a shell script with the number of their first line, counted from 0.

    Lines that end with a backslash are joined and comments are dropped. Commands end at the end of a line, at `&&` and
    at `;`, but loops and conditions are not split. Raises ValueError for a quote that is not closed.
    """
    position = number = 0
    while position < len(script):
        start, text, position = number, *_command(script, position)
        number = script.count("\n", 0, position)
        heredoc = _HEREDOC.search(text)
        if heredoc:
            end = re.compile(rf"^\s*{heredoc[2]}$", re.M).search(script, position)
            if end is None:
                raise ValueError(f"the here-document {heredoc[2]} of {text!r} is not closed")
            text, position = f"{text}\n{script[position : end.end()]}", end.end() + 1
            number = script.count("\n", 0, position)
        if text:
            yield start + _empty_lines(script, start), text


def _empty_lines(script: str, start: int) -> int:
    """Return the number of lines after `start` that contain no command."""
    lines = script.split("\n")[start:]
    return next((n for n, line in enumerate(lines) if line.strip() and not line.strip().startswith("#")), 0)


def _command(script: str, position: int) -> tuple[str, int]:
    """Return the command at a position of a script, and the position after it."""
    text, compound = "", _COMPOUND.match(script[position:].lstrip()) is not None
    for token in _TOKEN.finditer(script, position):
        if token[0] in ("'", '"'):
            raise ValueError(f"a quote is not closed: {script[token.start() :].splitlines()[0]}")
        closed = re.search(r"\b(done|fi|esac)\s*$", text) is not None
        if (compound and closed and token[0] == "\n") or (not compound and token[0] in ("\n", "&&", ";")):
            return text.strip(), token.end()
        if token[0].startswith("\\\n"):
            text = f"{text.rstrip()} "
        elif not token[0].startswith("#") or (text and not text[-1].isspace()):
            text += token[0]
    return text.strip(), len(script)


def commands_of_pages(root: Path) -> list[FencedCommand]:
    """All commands of README.md and the other pages of the root, and of docs/.

    docs/examples is excluded, because scripts/dev/worked_example.py runs its commands and writes their output.
    """
    pages = [*sorted(root.glob("*.md")), *sorted((root / "docs").rglob("*.md"))]
    return [
        command
        for page in pages
        if not page.is_relative_to(root / "docs" / "examples")
        for command in commands_of(str(page.relative_to(root)), page.read_text(encoding="utf-8"))
    ]
