"""Reject JSON files that are neither JSONL nor an array: one object that contains the rows, or objects that span
several lines."""

import json
import re
from dataclasses import dataclass, field

from data.base.errors import DataError
from data.base.problems import listed
from data.sources.formats import content as c
from data.sources.formats.names import suffix_of
from data.sources.remote.remote_file import InputPath

_HEAD = 1 << 16
_SPACE = re.compile(r"\s*")
_ROWS_KEYS = ("rows", "data", "examples", "records", "items", "train")
"""If a file contains several lists, the list under one of these keys is preferred as the list of rows."""
_EXAMPLE_KEYS = ("messages", "conversations", "conversation", "turns", "prompt", "completion", "chosen", "rejected")
"""Keys whose values in a single row are lists of objects. These lists are not the rows of a file."""


def refuse_objects(path: InputPath, name: str) -> None:
    """Raises DataError for a file whose lines cannot be rows. The message contains the command that converts the file
    to JSONL."""
    with c.Blocks(path, name) as blocks:
        text = blocks.read(_HEAD).decode(errors="ignore").lstrip()
        if not text.startswith("{"):
            return
        line, _, rest = text.partition("\n")
        one_line = suffix_of(name) == ".json" and not rest.strip() and _is_one_line(blocks, "\n" in text)
    if not one_line and _is_json(line):
        return
    found = _read_object(text)
    lists = [key for key in found.lists if key not in _EXAMPLE_KEYS]
    over_lines = "\n" in text[: found.end].rstrip()
    if lists and (one_line or over_lines) and not (found.closed and text[found.end :].strip()):
        lists.sort(key=lambda key: key not in _ROWS_KEYS)
        path_in = (lists[0] if lists[0].isidentifier() else f"[{json.dumps(lists[0])}]") + "[]"
        # Responses of the hub's dataset viewer contain a list of {row_idx, row}.
        path_in += ".row" if {"features", "rows"} <= set(found.keys) else ""
        raise DataError(
            f"{name} is one JSON object (with {listed(found.keys)}) that contains the rows in a list, under "
            f"{' or '.join(map(repr, lists))}: write one row per line with `jq -c '.{path_in}' FILE > FILE.jsonl`, and "
            "use that file"
        )
    if over_lines and found.keys:
        raise DataError(
            f"{name} has JSON objects that span several lines: write one object per line with "
            "`jq -c . FILE > FILE.jsonl`, and use that file"
        )


def _is_one_line(blocks: c.Blocks, ended: bool) -> bool:
    """Whether only white space follows the first line. `ended` is true if the first line has already been read
    completely."""
    while block := blocks.read():
        if not ended:
            ended, block = b"\n" in block, block.partition(b"\n")[2]
        if block.strip():
            return False
    return True


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


@dataclass
class _Object:
    """The part of an object before the first parsing error."""

    keys: list[str] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    """Keys of lists of objects."""
    end: int = 1
    """Position at which parsing ended."""
    closed: bool = False
    """Whether the object ends at that position."""


def _read_object(text: str) -> _Object:
    found, decoder = _Object(), json.JSONDecoder()
    try:
        while True:
            found.end = _after_space(text, found.end)
            if text[found.end : found.end + 1] == "}":
                found.end, found.closed = found.end + 1, True
                return found
            if text[found.end : found.end + 1] != '"':
                return found
            key, at = decoder.raw_decode(text, found.end)
            at = _after_space(text, at)
            if text[at : at + 1] != ":":
                return found
            at = _after_space(text, at + 1)
            found.keys.append(key)
            if re.match(r"\[\s*\{", text[at : at + _HEAD]):
                found.lists.append(key)
            _, at = decoder.raw_decode(text, at)
            at = _after_space(text, at)
            found.end = at + (text[at : at + 1] == ",")
    except json.JSONDecodeError as error:
        found.end = max(found.end, error.pos)
    except RecursionError:
        pass
    return found


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None  # the pattern also matches an empty string
    return found.end()
