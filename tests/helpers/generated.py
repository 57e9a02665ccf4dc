"""Tables logged by callbacks.generate."""

import json
from pathlib import Path


def generated_tables(folder: Path, rank: int = 0) -> list[list[list]]:
    """Return the rows of each table in the file logger's text: batch, prompt, response."""
    (log,) = folder.glob(f"log-rank{rank}*.txt")
    lines = [line for line in log.read_text().splitlines() if line.startswith("[table]: generate: ")]
    return [json.loads(line.partition("generate: ")[2])["data"] for line in lines]
