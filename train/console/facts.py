"""Lines of a key and a text: aligned, and readable in a file too."""

import shutil
import sys
import textwrap

WIDTH = 100
"""Columns of a line at most, unless a word is longer."""
_NARROWEST = 60
_KEY = 15


def line_width() -> int:
    """WIDTH, or that of a narrower terminal."""
    if not sys.stdout.isatty():
        return WIDTH
    return max(_NARROWEST, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def fact(key: str, text: str, width: int | None = None) -> str:
    """`key          text`; what does not fit continues below the text. width: that of a line; None is line_width()."""
    return textwrap.fill(
        text,
        width or line_width(),
        initial_indent=f"{key:<{_KEY - 1}} ",
        subsequent_indent=" " * _KEY,
        break_long_words=False,
        break_on_hyphens=False,
    )


def fact_of(line: str) -> str:
    """The fact that a line `key: text` states."""
    key, _, text = line.partition(": ")
    return fact(key, text)


def command_fact(key: str, command: str) -> str:
    """A fact whose text is a shell command, which can be copied from several lines too."""
    if "'" in command:  # a line must not end inside of quotes
        return f"{key:<{_KEY - 1}} {command}"
    return " \\\n".join(fact(key, command, line_width() - 2).split("\n"))


def count_of(number: float) -> str:
    """`912`, `61.4k`, `3.07M`, `1.20T`: three digits."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            value = number / (1e3 if unit == "k" else size)
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}{unit}"
    return f"{number:,.0f}" if number >= 10 else f"{number:.3g}"
