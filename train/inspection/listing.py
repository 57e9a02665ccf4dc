"""List the checkpoints of a save folder as a table or as JSON, reading only their manifests."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from data.base.errors import ConfigError
from data.base.sizes import format_bytes
from train.checkpoint.owner import FoundOwner, owner_of
from train.checkpoint.save_folder import LATEST, check_identity, named_batch
from train.checkpoint.storage.manifest import (
    FORMAT,
    METADATA,
    CorruptCheckpointError,
    Manifest,
    check_files,
    read_manifest,
)
from train.inspection.found import Found, read_errors_named

EARLIER = "earlier version"
"""The displayed format of a checkpoint that was written before manifests existed."""
_ID = 8
"""Number of characters of a run_id that are displayed."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Information about a checkpoint that is available without reading its tensors."""

    checkpoint: Path
    manifest: Manifest | None
    """None if the manifest is damaged, or if the checkpoint was written before manifests existed."""
    size: int
    """Size on disk, in bytes."""
    written: str
    """Time in UTC (ISO 8601) when the checkpoint was written; if there is no manifest, the modification time."""
    latest: bool
    """Whether the link `latest` refers to this checkpoint."""
    error: ConfigError | None
    """A defect of the manifest, or of the names and sizes of the files."""

    @property
    def format(self) -> str:
        if self.manifest is not None:
            return f"manifest {FORMAT}"
        if self.error is None:
            return EARLIER
        return "damaged" if isinstance(self.error, CorruptCheckpointError) else "unknown"

    @property
    def batch(self) -> int | None:
        """The batch, from the manifest or, if the manifest does not contain the batch, from the name of the checkpoint.
        None if neither contains the batch."""
        return self.manifest.batch if self.manifest is not None else named_batch(self.checkpoint)


def entries(found: Found) -> list[Entry]:
    """Return an entry for each checkpoint. Defects of a checkpoint are reported in its entry. Raises ConfigError if a
    folder cannot be read."""
    link = found.folder / LATEST
    latest = link.resolve() if link.is_symlink() else None
    listed = [_entry(checkpoint, latest) for checkpoint in found.checkpoints]
    return [entry for entry in listed if entry is not None]


def _entry(checkpoint: Path, latest: Path | None) -> Entry | None:
    """Return the entry of a checkpoint; None if the run has deleted the checkpoint in the meantime."""
    manifest, error = None, None
    with read_errors_named(checkpoint):
        try:
            manifest = read_manifest(checkpoint) if checkpoint.is_dir() else None
            if manifest is not None:
                check_identity(checkpoint, manifest)
                check_files(checkpoint, manifest)
        except ConfigError as raised:
            error = raised
        if not checkpoint.exists():
            return None
        files = [file for file in checkpoint.iterdir() if file.is_file()] if checkpoint.is_dir() else [checkpoint]
        size = sum(file.stat().st_size for file in files)
        index = checkpoint / METADATA
        changed = (index if index.is_file() else checkpoint).stat().st_mtime
    when = datetime.fromtimestamp(changed, UTC).isoformat(timespec="seconds")
    return Entry(
        checkpoint=checkpoint,
        manifest=manifest,
        size=size,
        written=manifest.written if manifest is not None else when,
        latest=latest is not None and checkpoint.resolve() == latest,
        error=error,
    )


def table(listed: Sequence[Entry]) -> Table:
    """Return a table with one row per checkpoint. If the versions of packages differ between checkpoints, the table has
    a column for them."""
    changing = _changing_versions(listed)
    found = Table()
    for column in ("checkpoint", "batch", "written (UTC)", "size", "ranks", "run", "format"):
        found.add_column(column, justify="right" if column in ("batch", "size", "ranks") else "left")
    if changing:
        found.add_column("versions")
    for entry in listed:
        manifest = entry.manifest
        # The cells are Text objects, because rich would interpret brackets in a run's name as markup.
        row = [
            entry.checkpoint.name + (f" ({LATEST})" if entry.latest else ""),
            f"{entry.batch:,}" if entry.batch is not None else "?",
            entry.written[:19].replace("T", " "),
            format_bytes(entry.size),
            str(manifest.world_size) if manifest is not None else "?",
            f"{manifest.run_name} ({manifest.run_id[:_ID]})" if manifest is not None else "?",
            entry.format + (" (corrupt)" if entry.error is not None and manifest is not None else ""),
        ]
        if changing:
            versions = manifest.versions if manifest is not None else {}
            row.append(", ".join(f"{name} {versions[name]}" for name in changing if name in versions))
        found.add_row(*map(Text, row))
    return found


def _changing_versions(listed: Sequence[Entry]) -> list[str]:
    known = [entry.manifest.versions for entry in listed if entry.manifest is not None]
    names = dict.fromkeys(name for versions in known for name in versions)
    return [name for name in names if len({versions.get(name) for versions in known}) > 1]


def notes(found: Found, listed: Sequence[Entry]) -> Iterator[str]:
    """Yield the lines that are printed below the table. Raises ConfigError if the lock file cannot be read."""
    link = found.folder / LATEST
    if link.is_symlink() and not link.exists():
        yield f"{LATEST} links to {link.readlink()}, which does not exist"
    with read_errors_named(found.folder):
        owner = owner_of(found.folder)
    for path in found.leftovers:
        if owner is not None and owner.alive is not False:
            yield f"{path.name} is not committed yet: the run may still be writing it"
        else:
            yield f"{path.name} was not committed: the next run or prune deletes it"
    yield f"owner: {_described(owner)}"
    if len(listed) > 1:
        yield f"{len(listed)} checkpoints, {format_bytes(sum(entry.size for entry in listed))}"


def _described(owner: FoundOwner | None) -> str:
    if owner is None:
        return "none"
    state = {True: "which is alive", False: "which has ended", None: "on another machine, so its state is unknown"}
    return f"{owner.name}, {state[owner.alive]}"


def as_json(found: Found, listed: Sequence[Entry]) -> dict[str, Any]:
    """Return the listing as values for JSON, with sizes in bytes. Raises the same errors as `notes`."""
    with read_errors_named(found.folder):
        owner = owner_of(found.folder)
    return {
        "folder": str(found.folder),
        "owner": None if owner is None else {"name": owner.name, "alive": owner.alive},
        "checkpoints": [_values(entry) for entry in listed],
        "leftovers": [path.name for path in found.leftovers],
    }


def _values(entry: Entry) -> dict[str, Any]:
    names = ("epoch", "world_size", "run_name", "run_id", "versions")
    return {
        "name": entry.checkpoint.name,
        "batch": entry.batch,
        "latest": entry.latest,
        "written": entry.written,
        "size": entry.size,
        "format": entry.format,
        **{name: getattr(entry.manifest, name, None) for name in names},
        "error": None if entry.error is None else str(entry.error),
    }
