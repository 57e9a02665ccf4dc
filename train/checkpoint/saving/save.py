"""Write a checkpoint into a hidden folder and commit it. The folder counts as a checkpoint only once it has a
manifest."""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from composer.utils import dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_saver import save

from data.base.errors import os_error
from train.checkpoint.save_folder import LATEST, PART
from train.checkpoint.saving.ranks import Ranks, SaveFailed, mesh_of
from train.checkpoint.storage.digests import FileDigest, digest_bytes
from train.checkpoint.storage.manifest import CONFIG, STATE, Manifest, sync_folder, write_manifest, write_synced
from train.checkpoint.storage.writer import HashingWriter

_OVERHEAD = 4096
"""Maximum number of bytes that torch writes, per tensor and rank, in addition to the data of the tensor."""


@dataclass(frozen=True)
class Saved:
    """The outcome of a save. `refused` is the same on every rank."""

    files: tuple[str, ...] = ()
    """The files that this rank has written."""
    refused: OSError | None = None
    """The file system's error on the first rank that had an error; None if no rank had an error. After an error, no
    files remain."""


def save_checkpoint(
    checkpoint: Path,
    tensors: Mapping[str, Tensor],
    *,
    state: bytes,
    config: str,
    about: Manifest,
    confirm: Callable[[], object] = lambda: None,
    ranks: Ranks | None = None,
    rest: Callable[[], object] = lambda: None,
) -> Saved:
    """Save and commit a checkpoint. An existing checkpoint of the same name is replaced. Every rank must call this.

    Unsharded tensors are written by rank 0. Under HYBRID_SHARD, the ranks of the first replica write the tensors.
    state: rank 0's serialized RunState. about: the manifest, without files. confirm: called on rank 0 before writing,
    and between writing and committing; its errors are raised on every rank. rest: see HashingWriter.
    """
    ranks = ranks or Ranks()
    part = checkpoint.with_name(PART + checkpoint.name)
    digests: Mapping[str, FileDigest] = {}
    needed = n_bytes(tensors) + _OVERHEAD * len(tensors) * ranks.world_size
    refused = _refused_on_first(ranks, lambda: _prepare(part, needed, confirm))
    if refused is None:
        digests, error = _write(part, tensors, ranks, rest)
        refused = _first_refused(error, ranks)
    if refused is None:
        files = {name: digest for each in ranks.gather(digests) for name, digest in each.items()}
        manifest = replace(about, files=files)
        refused = _refused_on_first(ranks, lambda: _commit(part, checkpoint, state, config, manifest, confirm))
    if refused is not None:
        # Each node deletes the folder, because the nodes may not share a file system, which is a possible cause of the
        # error.
        ranks.on_each(lambda: dist.get_local_rank() or shutil.rmtree(part, ignore_errors=True))
    mine = (*digests, STATE, CONFIG) if ranks.is_first else tuple(digests)
    return Saved(mine, refused)


def n_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Total size of the tensors on all ranks."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _refused_on_first(ranks: Ranks, run: Callable[[], None]) -> OSError | None:
    """Call run() on rank 0. If it raises an OSError, return the error on every rank. Other errors are raised on every
    rank."""
    try:
        ranks.on_first(run)
    except OSError as error:
        return error
    return None


def _first_refused(error: BaseException | None, ranks: Ranks) -> OSError | None:
    """Return the first OSError of any rank; None if no rank had an error. Errors with other causes are raised on every
    rank. This function is needed because torch sends errors to other ranks without the causes of the errors."""
    found = ranks.gather(None if error is None else (_refused(error), f"{type(error).__name__}: {error}"))
    failed = [each for each in found if each is not None]
    refused = next((cause for cause, _ in failed if cause is not None), None)
    if failed and refused is None:
        raise SaveFailed(f"a checkpoint could not be written: {failed[0][1]}") from error
    return refused


def _prepare(part: Path, needed: int, confirm: Callable[[], object]) -> None:
    """Create the folder to write to, if there is enough space. Called on rank 0 only, because all nodes share the
    folder."""
    confirm()
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True, exist_ok=True)
    usage = shutil.disk_usage(part.parent)
    # File systems that do not report their size have a total of 0.
    if usage.total and usage.free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write(
    part: Path, tensors: Mapping[str, Tensor], ranks: Ranks, rest: Callable[[], object]
) -> tuple[Mapping[str, FileDigest], BaseException | None]:
    """Write this rank's shards of the tensors. Return the hashes of the written files, and the error if writing
    failed."""
    mesh = mesh_of(tensors.values())
    group, writes = ranks.writers(mesh)
    if not writes:
        return {}, None
    writer = HashingWriter(part, rest=rest)
    planner = DefaultSavePlanner(
        flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True
    )
    try:
        save(
            dict(tensors),
            storage_writer=writer,
            planner=planner,
            process_group=group,
            no_dist=mesh is None,
        )
    except (CheckpointException, Exception) as error:
        # The error is not raised here, because the other ranks would then wait for this rank. Ranks exchange their
        # errors later.
        return {}, writer.error or error
    return writer.digests, None


def _refused(error: BaseException) -> OSError | None:
    if not isinstance(error, CheckpointException):
        return os_error(error)
    found = (os_error(failure) for failure, _ in error.failures.values())
    return next((cause for cause in found if cause is not None), None)


def _commit(
    part: Path, checkpoint: Path, state: bytes, config: str, manifest: Manifest, confirm: Callable[[], object]
) -> None:
    """Write state.json, config.yaml and the manifest, and rename the folder to its final name. Called on rank 0 only.
    Raises OSError."""
    # A run that was suspended while it was writing may no longer own its folder.
    confirm()
    files = dict(manifest.files)
    if missing := sorted(name for name in files if not (part / name).is_file()):
        raise OSError(
            errno.ENOENT, f"{missing[0]} was written on another node, but all nodes must share the save folder"
        )
    for name, data in ((STATE, state), (CONFIG, config.encode())):
        write_synced(part / name, data)
        files[name] = digest_bytes(data)
    write_manifest(part, replace(manifest, files=files))
    before = checkpoint.with_name(f"{PART}replaced-{checkpoint.name}-{uuid.uuid4().hex[:8]}")
    if checkpoint.exists():
        checkpoint.rename(before)
    part.rename(checkpoint)
    sync_folder(checkpoint.parent)
    shutil.rmtree(before, ignore_errors=True)
    point_to(checkpoint)


def point_to(checkpoint: Path) -> None:
    """Make `latest` a link to the checkpoint, atomically. Does nothing if the file system does not support links."""
    part = checkpoint.with_name(f"{PART}{LATEST}")
    with suppress(OSError):
        part.unlink(missing_ok=True)
        part.symlink_to(checkpoint.name)
        part.replace(checkpoint.with_name(LATEST))
