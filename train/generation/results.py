"""Stores evaluation results by name in evaluation.json in the model's folder.

A table in the folder's README.md, which is the model card, shows all results.
"""

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError
from data.base.versions import installed_versions
from train.models.precision import Precision

RESULTS = "evaluation.json"
CARD = "README.md"
MARKER = "<!-- evaluation -->"
"""Marks the beginning and the end of the generated part of the card. The rest of the card is not changed."""

Result = dict[str, Any]
"""The result of an evaluation. Its keys are `asked`, the number of questions or None; `metrics`, the values by metric;
`stderr`, the standard errors by metric, for metrics that have a standard error; and the settings of the evaluation."""


def rows_of(results: Mapping[str, Result]) -> list[tuple[str, str, str, str]]:
    """Return (task, metric, value, asked) as text, one row per metric."""
    rows = []
    for name, result in results.items():
        asked = "" if result["asked"] is None else f"{result['asked']:,}"
        for metric, value in result["metrics"].items():
            spread = result["stderr"].get(metric)
            rows.append((name, metric, f"{value:.4f}" + (f" ± {spread:.4f}" if spread is not None else ""), asked))
    return rows


def keep(folder: Path, results: Mapping[str, Result], precision: Precision) -> dict[str, Result]:
    """Add the results to the folder's evaluation.json, show all stored results in its card, and return them.

    Raises ConfigError if one of the files cannot be read or written.
    """
    file = folder / RESULTS
    now = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "precision": precision,
        "versions": installed_versions(("lm-eval", "torch", "transformers")),
    }
    every = read_kept(folder) | {name: {**result, **now} for name, result in results.items()}
    try:
        _replace(file, json.dumps(every, indent=2) + "\n")
        card = folder / CARD
        before = card.read_text(encoding="utf-8") if card.is_file() else f"# {folder.resolve().name}\n"
        _replace(card, with_section(before, section(every)))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the results cannot be written to {folder}: {error}") from None
    return every


def read_kept(folder: Path) -> dict[str, Result]:
    """The stored results of earlier evaluations. Raises ConfigError if they cannot be read."""
    file = folder / RESULTS
    if not file.is_file():
        return {}
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        rows_of(kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} does not contain evaluation results ({error!r}): remove the file") from None
    return kept


def section(results: Mapping[str, Result]) -> str:
    """The section of the model card that shows the results, in Markdown."""
    rows = [(*row, results[row[0]]["date"]) for row in rows_of(results)]
    header = ("task", "metric", "value", "asked", "date")
    lines = [header, ("---",) * len(header), *rows]
    table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return f"## Benchmarks\n\n{table}\n\nThe settings and versions of each result are in {RESULTS}.\n"


def with_section(card: str, text: str) -> str:
    """Return the card with `text` inserted between its markers, or appended if the card has no markers."""
    part = f"{MARKER}\n{text}{MARKER}"
    pattern = re.compile(f"{re.escape(MARKER)}.*{re.escape(MARKER)}", re.DOTALL)
    if pattern.search(card):
        return pattern.sub(lambda _: part, card)
    return f"{card.rstrip()}\n\n{part}\n"


def _replace(file: Path, text: str) -> None:
    """Replace the file atomically."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)
