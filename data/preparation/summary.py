"""The summary that is printed after a preparation: a table of all rows and tokens."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.base.problems import listed


def summary(manifest: dict[str, Any], folder: Path, seconds: float) -> str:
    """A table of all rows and tokens. Lines with counts of 0 are left out."""
    if "tokenizer" not in manifest:
        dropped = "".join(f", {count:,} dropped ({reason})" for reason, count in manifest["dropped"].items())
        wrote = f"Wrote {manifest['rows']:,} of {manifest['rows_in']:,} rows{dropped} in {seconds:.1f} s: {folder}"
        return "\n".join([wrote, *_noticed(manifest)])
    table: list[tuple[Any, Any, Any, str]] = [
        ("Prepared", "rows", "tokens", ""),
        ("in", manifest["rows_in"], manifest["tokens_in"], f"from {len(manifest['inputs'])} file(s)"),
        ("kept", manifest["examples_kept"], manifest["tokens_kept"], f"{manifest['trained_tokens']:,} trained on"),
        (
            "truncated",
            manifest["examples_truncated"],
            manifest["tokens_truncated"],
            "included in kept; the ends of these rows were removed",
        ),
        ("dropped", sum(manifest["dropped"].values()), manifest["tokens_dropped"], ""),
        *(("", count, "", reason) for reason, count in manifest["dropped"].items()),
    ]
    cells = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in line] for line in table if line[1] or line[2]]
    lines = [f"  {name:<10}{rows:>14}{tokens:>20}  {note}".rstrip() for name, rows, tokens, note in cells]
    lines[0] = lines[0].replace("  Prepared", "Prepared  ", 1)
    positions = manifest["rows"] * manifest["max_seq_len"]
    used = f"{manifest['tokens_kept'] / positions:.1%} full"
    lines.append(f"  {manifest['rows']:,} rows of {manifest['max_seq_len']:,} ({used}) in {seconds:.1f} s: {folder}")
    return "\n".join([*lines, *_noticed(manifest)])


def _noticed(manifest: dict[str, Any]) -> Iterator[str]:
    for key, what in (("bad_rows", "bad rows"), ("ignored_columns", "ignored columns")):
        if manifest[key]:
            yield f"  {what}: {listed(f'{name} ({count:,})' for name, count in manifest[key].items())}"
