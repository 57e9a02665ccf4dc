"""Checks of paths and names. Without these checks, an invalid path would cause a traceback when it is first used."""

import argparse
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError
from data.secrets.redaction import redacted

MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095
"""NAME_MAX of common file systems, and Linux's PATH_MAX without the terminating NUL."""
MAX_LABEL = 128
"""Maximum number of characters in the name of a W&B run, project or group."""
STORES = ("s3", "gs")
"""Schemes of the object stores from which data files are read and to which checkpoints are written."""
_SHOWN = 80
_PLACEHOLDER = re.compile(r"\{[^{}]*\}|[{}]")


def shown(value: object) -> str:
    """The value's repr without secrets, shortened to a readable length."""
    text = redacted(repr(value))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def path_defect(value: object) -> str | None:
    """Return an error message if `value`, or a string in it, is not a valid path; otherwise return None. The message
    can be appended to the name of the key.

    Whether the path exists is checked elsewhere.
    """
    for path in _texts(value):
        if "\0" in path:
            return f"has {shown(path)}, but a path cannot contain a NUL byte (\\0): remove it"
        if "://" in path:
            continue  # object stores have other limits
        longest = max(len(part.encode(errors="surrogateescape")) for part in path.split("/"))
        length = len(path.encode(errors="surrogateescape"))
        if longest > MAX_NAME_BYTES or length > MAX_PATH_BYTES:
            what = f"a name of {longest:,} bytes" if longest > MAX_NAME_BYTES else f"{length:,} bytes"
            most = MAX_NAME_BYTES if longest > MAX_NAME_BYTES else MAX_PATH_BYTES
            return f"is {shown(path)}, which has {what}, but the maximum is {most:,}: shorten the path"
    return None


def name_defect(value: object) -> str | None:
    """Return an error message if `value` is not a valid name for a subfolder; otherwise return None. The message can be
    appended to the name of the key."""
    if not isinstance(value, str):
        return None
    if (defect := path_defect(value)) is not None:
        return defect
    if "/" in value or value in (".", ".."):
        reason = "it must be the name of a folder: write a name without slashes"
    elif "{" in value or "}" in value:
        reason = "placeholders are not supported: write a name without braces"
    elif not value.isprintable():
        reason = "it contains unprintable characters: use only letters, digits, - and _"
    else:
        return None
    return f"is {shown(value)}, but {reason}"


def label_defect(value: object) -> str | None:
    """Return an error message if `value`, or a string in it, is not a valid label for a service such as W&B; otherwise
    return None. The message can be appended to the name of the key."""
    for text in _texts(value):
        if not text.isprintable():
            return f"is {shown(text)}, but it contains unprintable characters: remove them"
        if len(text) > MAX_LABEL:
            return f"is {shown(text)}, which has {len(text):,} characters, but the maximum is {MAX_LABEL}: shorten it"
    return None


def placeholder_defect(value: object, *names: str) -> str | None:
    """Return an error message if `value` contains a `{name}` placeholder that is not in `names`; otherwise return None.
    The message can be appended to the name of the key. Other braces are not allowed, and the text between braces is not
    evaluated."""
    known = [f"{{{name}}}" for name in names]
    found = (
        next((found for found in _PLACEHOLDER.findall(value) if found not in known), None)
        if isinstance(value, str)
        else None
    )
    if found is None:
        return None
    allowed = (
        f"the only {'placeholder is' if len(known) == 1 else 'placeholders are'} {' and '.join(known)}"
        if known
        else "placeholders are not supported"
    )
    return f"is {shown(value)}, but {allowed}: remove {shown(found)}, and any other placeholder that is not supported"


def fill_placeholders(text: str, values: Mapping[str, object]) -> str:
    """Replace each `{name}` in a text for which `placeholder_defect` returned None."""
    return _PLACEHOLDER.sub(lambda found: str(values[found[0][1:-1]]), text)


def is_file_name(text: str) -> bool:
    """Whether the text is a valid file name."""
    return text not in ("", ".", "..") and "/" not in text and path_defect(text) is None


def refuse_path(key: str, value: object) -> None:
    """Raise ConfigError if `value` is not a valid path. Used only for paths outside config sections. Paths in
    config sections are checked in data/config/values.py."""
    if (defect := path_defect(value)) is not None:
        raise ConfigError(defect, key=key)


def refuse_path_arguments(args: argparse.Namespace, *names: str) -> None:
    """Apply refuse_path to the command-line arguments with these names, such as `--file` or `folder`."""
    for name in names:
        refuse_path(name, getattr(args, name.removeprefix("--")))


def refuse_output(flag: str, path: Path, *inputs: str | Path | None) -> None:
    """Raise ConfigError if a command-line argument is not the path of a file that can be written, or if it is the path
    of one of the inputs."""
    refuse_path(flag, path)
    valid = [each for each in inputs if each is not None and path_defect(each) is None]
    if any(os.path.realpath(each) == os.path.realpath(path) for each in valid):
        raise ConfigError(
            f"{flag} is {str(path)!r}, which is also an input and would be overwritten: choose another file"
        )
    if path.is_dir():
        raise ConfigError(f"{flag} is {str(path)!r}, which is a folder: specify a file")
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"{flag} is {str(path)!r}, but its folder does not exist or is not writable")


def _texts(value: object) -> list[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    items: Any = value if isinstance(value, list | tuple) else [value]
    return [str(item) for item in items if item is not None]


def is_unicode(text: str) -> bool:
    """Whether the text has no lone surrogates, which Python uses for bytes that are not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
