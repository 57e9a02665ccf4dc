"""The commit marker of a checkpoint: a manifest that lists the files and their hashes, and is written last.

A checkpoint without a manifest is not committed, except for checkpoints written before manifests existed. These
checkpoints have no state.json either, and are read without being verified.
"""

import base64
import binascii
import errno
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError, cannot_be
from train.checkpoint.storage.digests import BLOCK_BYTES, HASH_BYTES, FileDigest, block_hash, text_hash

MANIFEST = "manifest.json"
STATE = "state.json"
CONFIG = "config.yaml"
METADATA = ".metadata"
"""torch's index of the tensors in the other files."""
FORMAT = 1
"""Version of the manifest's format. Other versions are refused."""
_MOST_BYTES = 1 << 30
"""Maximum size of a manifest. A checkpoint of 1 TB has a manifest of about 12 MB."""


class CorruptCheckpointError(ConfigError):
    """The files of a checkpoint do not match its manifest."""

    def __init__(self, checkpoint: Path, name: str, defect: str) -> None:
        super().__init__(f"checkpoint {checkpoint} is corrupt: {name} {defect}")
        self.checkpoint, self.name, self.defect = checkpoint, name, defect

    def __reduce__(self) -> tuple[Any, ...]:
        return CorruptCheckpointError, (self.checkpoint, self.name, self.defect)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of a manifest: the origin of a checkpoint, and the digests of its files."""

    run_id: str
    """The id of the run. All checkpoints of a run have the same id, even if the run is resumed."""
    run_name: str
    batch: int
    epoch: int
    written: str
    """Time of writing in UTC (ISO 8601)."""
    world_size: int
    versions: Mapping[str, str]
    """Versions of Python and of the packages that affect results."""
    files: Mapping[str, FileDigest] = field(default_factory=dict)
    """Maps the name of each file, except the manifest itself, to its digest."""

    @property
    def size(self) -> int:
        """Total size of the files in bytes."""
        return sum(digest.size for digest in self.files.values())


def lacks_manifest(checkpoint: Path) -> bool:
    """Whether a folder that has no manifest should have one. Checkpoints written before manifests existed have neither
    a state.json nor a config.yaml."""
    return (checkpoint / STATE).exists() or (checkpoint / CONFIG).exists()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Commit the checkpoint in the folder. Its files must already be on disk. The manifest is written atomically.

    Raises OSError.
    """
    values = asdict(manifest) | {"format": FORMAT, "block_bytes": BLOCK_BYTES, "files": _encoded(manifest.files)}
    text = json.dumps({"manifest": values, "xxh3_128": text_hash(_canonical(values))}, indent=1)
    part = folder / f"{MANIFEST}.part"
    write_synced(part, text.encode())
    sync_folder(folder)
    part.replace(folder / MANIFEST)
    sync_folder(folder)


def read_manifest(checkpoint: Path) -> Manifest | None:
    """Read a manifest and verify its own hash. Return None for a checkpoint that was written before manifests existed.

    Raises CorruptCheckpointError.
    """
    path = checkpoint / MANIFEST
    try:
        if not path.is_file():
            if lacks_manifest(checkpoint):
                raise CorruptCheckpointError(checkpoint, MANIFEST, "is missing")
            return None
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, which is too large for a manifest")
        content = json.loads(path.read_bytes())
        values = content["manifest"]
        if text_hash(_canonical(values)) != content["xxh3_128"]:
            raise ValueError("its hash does not match")
        if values["format"] != FORMAT:
            raise ConfigError(
                f"{path} has format {values['format']}, but this version of Dropless reads format {FORMAT}: use the "
                "version that wrote the file"
            )
        if values["block_bytes"] != BLOCK_BYTES:
            raise ValueError(f"its blocks have {values['block_bytes']} bytes, which is not supported")
        files = {name: _decoded(name, entry) for name, entry in values["files"].items()}
        rest = {each.name: values[each.name] for each in fields(Manifest) if each.name != "files"}
        manifest = Manifest(**rest, files=files)
    except OSError as error:
        raise unreadable(checkpoint, MANIFEST, error) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        defect = f"is damaged: {error}" if type(error) is ValueError else "is damaged"
        raise CorruptCheckpointError(checkpoint, MANIFEST, defect) from None
    return manifest


def check_files(checkpoint: Path, manifest: Manifest) -> None:
    """Check that all files exist and have the right sizes, without reading them. Raises CorruptCheckpointError."""
    for name, digest in manifest.files.items():
        path = checkpoint / name
        try:
            if not path.is_file():  # a pipe is refused too, because reading it could block
                raise CorruptCheckpointError(checkpoint, name, "is missing")
            size = path.stat().st_size
        except OSError as error:
            raise unreadable(checkpoint, name, error) from None
        if size != digest.size:
            defect = f"has {size:,} bytes, but {digest.size:,} were written{_other_owner(checkpoint, name)}"
            raise CorruptCheckpointError(checkpoint, name, defect)


def corrupt_block(checkpoint: Path, name: str, start: int, stop: int) -> CorruptCheckpointError:
    """Return the error for a block whose hash differs from the manifest. The block consists of the bytes [start, stop)
    of a file."""
    defect = f"does not match its hash in bytes [{start:,}, {stop:,}){_other_owner(checkpoint, name)}"
    return CorruptCheckpointError(checkpoint, name, defect)


def _other_owner(checkpoint: Path, name: str) -> str:
    """Return a hint if the size and the first block of the file match a file of another checkpoint in the save
    folder."""
    try:
        path = checkpoint / name
        with path.open("rb") as file:
            size, first = path.stat().st_size, block_hash(file.read(BLOCK_BYTES))
    except OSError:
        return ""
    for other in sorted(checkpoint.absolute().parent.glob(f"*/{MANIFEST}")):
        try:
            manifest = read_manifest(other.parent)
        except ConfigError:
            continue
        for its_name, digest in manifest.files.items() if manifest is not None else ():
            if digest.size == size and size and digest.block(0) == first and other.parent.name != checkpoint.name:
                return f": the file looks like {its_name} of {other.parent.name}"
    return ""


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until it is on disk. Raises OSError."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the folder's entries are on disk. Does nothing on network file systems that do not support this."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)


def unreadable(checkpoint: Path, name: str, error: OSError) -> ConfigError:
    """Return the error for a file that cannot be read. A missing file or a bad disk sector counts as corruption. Other
    errors, such as missing permissions or an unavailable network, do not mean that the checkpoint is corrupt."""
    if error.errno in (errno.ENOENT, errno.EIO):
        return CorruptCheckpointError(checkpoint, name, cannot_be("read", "", error).strip())
    return ConfigError(f"{cannot_be('read', checkpoint / name, error)}: fix the cause and start again")


def _encoded(files: Mapping[str, FileDigest]) -> dict[str, dict[str, Any]]:
    return {
        name: {"size": digest.size, "xxh3_128": digest.xxh3_128, "blocks": base64.b64encode(digest.blocks).decode()}
        for name, digest in sorted(files.items())
    }


def _decoded(name: str, entry: Mapping[str, Any]) -> FileDigest:
    if not is_plain_name(name) or name == MANIFEST:
        raise ValueError(f"it lists {name!r}, which is not a file of the checkpoint")
    try:
        blocks = base64.b64decode(entry["blocks"], validate=True)
    except binascii.Error:
        raise ValueError(f"the hashes of {name} cannot be read") from None
    size = int(entry["size"])
    if len(blocks) != -(-size // BLOCK_BYTES) * HASH_BYTES:
        raise ValueError(f"the number of hashes of {name} does not match its number of blocks")
    return FileDigest(size=size, xxh3_128=str(entry["xxh3_128"]), blocks=blocks)


def is_plain_name(name: str) -> bool:
    """Whether a name refers to a file directly in the folder."""
    return bool(name) and name not in (".", "..") and not set(name) & {"/", "\\", "\0"}


def _canonical(values: Any) -> str:
    return json.dumps(values, sort_keys=True, separators=(",", ":"))
