"""Aligned console lines, each with a key and a text."""

import shutil
import sys
import textwrap

WIDTH = 100
"""Maximum line width, unless a word is longer."""
_NARROWEST = 60
_KEY = 15


def line_width() -> int:
    """Return WIDTH, or the width of a narrower terminal."""
    if not sys.stdout.isatty():
        return WIDTH
    return max(_NARROWEST, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def fact(key: str, text: str, width: int | None = None) -> str:
    """Format `key          text`. Long texts continue on further, indented lines. width: maximum line width; None uses
    line_width()."""
    return textwrap.fill(
        text,
        width or line_width(),
        initial_indent=f"{key:<{_KEY - 1}} ",
        subsequent_indent=" " * _KEY,
        break_long_words=False,
        break_on_hyphens=False,
    )


def fact_of(line: str) -> str:
    """Format a line `key: text` as a fact."""
    key, _, text = line.partition(": ")
    return fact(key, text)


def command_fact(key: str, command: str) -> str:
    """Format a shell command as a fact. The command can be copied even if it spans several lines."""
    if "'" in command:  # do not break the line, because it could break inside quotes
        return f"{key:<{_KEY - 1}} {command}"
    return " \\\n".join(fact(key, command, line_width() - 2).split("\n"))


def count_of(number: float) -> str:
    """Format a number with three digits: `912`, `61.4k`, `3.07M`, `1.20T`."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            value = number / (1e3 if unit == "k" else size)
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}{unit}"
    return f"{number:,.0f}" if number >= 10 else f"{number:.3g}"
