"""Paths that no system call takes: each would end in a traceback of its own, in whatever comes to it first."""

import argparse
import re
from collections.abc import Mapping
from typing import Any

from data.base.errors import ConfigError
from data.base.redaction import redacted

MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095
"""NAME_MAX of the usual file systems, and Linux's PATH_MAX without its NUL."""
MAX_LABEL = 128
"""Characters of a name of a W&B run, its project or group."""
_SHOWN = 80
_PLACEHOLDER = re.compile(r"\{[^{}]*\}|[{}]")


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


def name_defect(value: object) -> str | None:
    """Why a text cannot be the name of one folder that is made below another, to stand after the key; else None."""
    if not isinstance(value, str):
        return None
    if (defect := path_defect(value)) is not None:
        return defect
    if "/" in value or value in (".", ".."):
        reason = "it names one folder, and cannot lead to another: write a name without slashes"
    elif "{" in value or "}" in value:
        reason = "nothing is filled in in it: write a name without braces"
    elif not value.isprintable():
        reason = "it has characters that cannot be shown: write letters, digits, - and _"
    else:
        return None
    return f"is {shown(value)}, but {reason}"


def label_defect(value: object) -> str | None:
    """Why texts (in lists too) cannot be labels that a service shows, to stand after the key; else None."""
    for text in _texts(value):
        if not text.isprintable():
            return f"is {shown(text)}, but it has characters that cannot be shown: remove them"
        if len(text) > MAX_LABEL:
            return f"is {shown(text)}, which has {len(text):,} characters, but {MAX_LABEL} are the most: shorten it"
    return None


def placeholder_defect(value: object, *names: str) -> str | None:
    """Why a text with `{name}` in it cannot be filled in, to stand after the key; else None. Braces stand for nothing
    else, and what is between them is not evaluated."""
    known = [f"{{{name}}}" for name in names]
    found = (
        next((found for found in _PLACEHOLDER.findall(value) if found not in known), None)
        if isinstance(value, str)
        else None
    )
    if found is None:
        return None
    allowed = (
        f"only {' and '.join(known)} {'is' if len(known) == 1 else 'are'} filled in"
        if known
        else "nothing is filled in"
    )
    return f"is {shown(value)}, but {allowed} there: remove {shown(found)}, and all other braces"


def fill_placeholders(text: str, values: Mapping[str, object]) -> str:
    """The text with each `{name}` replaced. It has no `placeholder_defect`."""
    return _PLACEHOLDER.sub(lambda found: str(values[found[0][1:-1]]), text)


def is_file_name(text: str) -> bool:
    """Whether it names a file in a folder, and can neither lead out of it nor be no path at all."""
    return text not in ("", ".", "..") and "/" not in text and path_defect(text) is None


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
