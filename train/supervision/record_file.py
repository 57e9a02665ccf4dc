"""record.jsonl beside the checkpoints: a line for each checkpoint, evaluation and event of a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.base.errors import plain_os_errors
from train.checkpoint.save_folder import RECORD


def add_line(folder: Path, line: Mapping[str, Any]) -> None:
    """For one process. Raises ConfigError or DataError for what a file system refuses (see plain_os_errors)."""
    text = json.dumps(line).encode() + b"\n"
    again = "start again with autoresume=true"
    with (
        plain_os_errors(f"save_folder {folder}", "name another", needed_for=RECORD, again=again),
        (folder / RECORD).open("a+b") as file,
    ):
        end = file.seek(0, 2)
        file.seek(max(end - 1, 0))
        # A killed run's last line may have been cut off: it must not take this one with it.
        begin = b"" if file.read(1) in (b"", b"\n") else b"\n"
        file.write(begin + text)
