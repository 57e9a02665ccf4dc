"""record.jsonl: a line for each start, stage, checkpoint, evaluation, event and sample of a run."""

import json
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from data.base.errors import plain_os_errors
from train.checkpoint.save_folder import RECORD


class Record:
    """record.jsonl of a run, written to its log folder and its save folder by one process."""

    def __init__(self, folders: Mapping[str, Path | None]) -> None:
        """folders: maps each config key that specifies a folder to the path of the folder, or to None if the key is not
        set."""
        self._folders: dict[Path, str] = {}
        for key, folder in folders.items():
            if folder is not None:
                self._folders.setdefault(folder, key)

    def add(self, line: Mapping[str, Any]) -> None:
        """Add the line to every folder. If add_line raises an error for a folder, the line is still added to the other
        folders before the error is raised."""
        with ExitStack() as stack:
            for folder, key in reversed(self._folders.items()):
                stack.callback(add_line, folder, line, key)


def add_line(folder: Path, line: Mapping[str, Any], key: str = "save_folder") -> None:
    """Add the line and the current time to the folder's record.jsonl. key: the config key of the folder.

    Raises ConfigError or DataError if the write fails (see plain_os_errors).
    """
    again = "start again with autoresume=true"
    with plain_os_errors(f"{key} {folder}", "specify another folder", needed_for=RECORD, again=again):
        append_line(folder / RECORD, {"batch": line["batch"], "time": round(time.time(), 3), **line})


def append_line(file: Path, line: Mapping[str, Any]) -> None:
    """Append an object to a file of JSON lines, unbuffered. Non-finite numbers become "nan", "inf" and "-inf".

    Raises OSError.
    """
    text = json.dumps(_finite(line), allow_nan=False).encode() + b"\n"
    with file.open("a+b") as opened:
        end = opened.seek(0, 2)
        opened.seek(max(end - 1, 0))
        # A killed run may have left an incomplete last line. Start a new line, so that the new object is readable.
        begin = b"" if opened.read(1) in (b"", b"\n") else b"\n"
        opened.write(begin + text)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
