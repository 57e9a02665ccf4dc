"""Paths that no system call takes: each would end in a traceback of its own, in whatever comes to it first."""

import argparse
from collections.abc import Mapping
from typing import Any

from data.base.errors import ConfigError
from data.base.redaction import redacted

MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095
"""NAME_MAX of the usual file systems, and Linux's PATH_MAX without its NUL."""
_SHOWN = 80


def shown(value: object) -> str:
    """repr without secrets, of which a part would not be recognized, cut to a readable length."""
    text = redacted(repr(value))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def path_defect(value: object) -> str | None:
    """Why a text in `value` (also in lists and mappings of them) cannot be a path, to stand after the key; else None.

    Whether there is something at it is asked elsewhere.
    """
    for path in _texts(value):
        if "\0" in path:
            return f"has {shown(path)}, but no path has a NUL byte (\\0) in it: remove it"
        if "://" in path:
            continue  # an object store has limits of its own
        longest = max(len(part.encode(errors="surrogateescape")) for part in path.split("/"))
        length = len(path.encode(errors="surrogateescape"))
        if longest > MAX_NAME_BYTES or length > MAX_PATH_BYTES:
            what = f"a name of {longest:,} bytes" if longest > MAX_NAME_BYTES else f"{length:,} bytes"
            most = MAX_NAME_BYTES if longest > MAX_NAME_BYTES else MAX_PATH_BYTES
            return f"is {shown(path)}, which has {what}, but file systems take {most:,}: shorten it"
    return None


def refuse_path(key: str, value: object) -> None:
    """Raises ConfigError for what cannot be a path, where the value is not a section's (see data/config/values.py)."""
    if (defect := path_defect(value)) is not None:
        raise ConfigError(defect, key=key)


def refuse_path_arguments(args: argparse.Namespace, *names: str) -> None:
    """The same for arguments of a command line, by their names as they are written: `--file`, or `folder`."""
    for name in names:
        refuse_path(name, getattr(args, name.removeprefix("--")))


def _texts(value: object) -> list[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    items: Any = value if isinstance(value, list | tuple) else [value]
    return [str(item) for item in items if item is not None]


def is_unicode(text: str) -> bool:
    """Whether it has no lone surrogates, such as those in the place of bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
