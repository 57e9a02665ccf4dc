"""Content of a prepared folder."""

import json
from pathlib import Path

import numpy as np
from streaming.base.compression import decompress
from streaming.base.format import reader_from_json

from tests.helpers.toy_tokenizer import ToyTokenizer

TOY = ToyTokenizer()


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def samples_of(folder: Path) -> list[dict[str, np.ndarray]]:
    """Return the rows as Streaming reads them."""
    samples = []
    for entry in json.loads((folder / "index.json").read_text())["shards"]:
        if entry["zip_data"] is not None:
            content = (folder / entry["zip_data"]["basename"]).read_bytes()
            (folder / entry["raw_data"]["basename"]).write_bytes(decompress(entry["compression"], content))
        reader = reader_from_json(str(folder), None, entry)
        samples += [reader[i] for i in range(reader.samples)]
    return samples


def documents_of(folder: Path) -> list[tuple[str, str]]:
    """Return prompt and response of every document in every row, decoded from tokens and mask."""
    out = []
    for row in samples_of(folder):
        start = 0
        for length in row["lengths"]:
            piece = slice(start, start + length)
            tokens, mask = row["tokens"][piece], row["loss_mask"][piece] != 0
            out.append((TOY.decode(tokens[~mask]), TOY.decode(tokens[mask])))
            start += length
    return out
