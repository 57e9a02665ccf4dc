"""The save folder during a run: its owner, its free space, and the callbacks that write to it."""

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from composer.utils import dist

from data.base.console import logger
from data.base.errors import ConfigError, DataError
from data.secrets.redaction import is_address
from train.callbacks.checkpoint_saver import CheckpointSaver, Saving
from train.checkpoint.owner import FLOCK, Owner, own
from train.checkpoint.remote.folder import RemoteFolder, store_errors_named
from train.checkpoint.remote.lease import take
from train.checkpoint.remote.mirror import Mirror
from train.checkpoint.remote.sender import Sender
from train.checkpoint.remote.staging import check_links, open_save_folder
from train.checkpoint.retention import Retention
from train.checkpoint.save_folder import PART, batch_of, checkpoints, recover, remove_leftovers
from train.checkpoint.saving.background import Written
from train.checkpoint.saving.save import point_to
from train.checkpoint.saving.space import check_space, count_saves, describe_space
from train.config.load import to_yaml
from train.config.schema import TrainConfig
from train.console.facts import fact, fact_of
from train.distributed.first_rank import on_first_rank
from train.run.inputs import Inputs, starting_from
from train.supervision.events import Events
from train.supervision.exit_codes import RunStopped
from train.supervision.hangs.deadlines import Section
from train.supervision.hangs.sections import within
from train.supervision.signals import StopSignals
from train.weights.start import find_start


@contextmanager
def owned(config: TrainConfig, inputs: Inputs) -> Iterator[tuple[Owner | None, Inputs]]:
    """Own the save folder of the run for the duration of the context. Yields the owner and the inputs. The owner is
    None on ranks other than 0, and for a run without a save folder. If a killed run had written a newer checkpoint
    completely but had not renamed it yet, the inputs start from that checkpoint.

    Every rank must call this. Raises ConfigError, on every rank, if another run owns the folder or has saved into it
    since `inputs` were opened, if not all nodes share the folder, or if there is not enough space for a checkpoint.
    """
    owners: list[Owner] = []
    with ExitStack() as stack:
        if (folder := inputs.folder) is not None:
            if dist.get_global_rank() == 0 and not folder.exists():
                stack.callback(_remove_if_unused, folder)
            chosen = [inputs.start]

            def take() -> None:
                owners.append(stack.enter_context(own(folder, inputs.run_name)))
                recovered = recover(folder)
                for path in recovered:
                    logger.info(f"recovered {path}: this checkpoint was complete when a run was killed")
                if recovered and config.autoresume:
                    chosen[0] = find_start(config, folder)
                    assert chosen[0] is not None
                    logger.info(fact("start", f"resuming from {chosen[0].path} (autoresume)"))

            on_first_rank(take)
            _check_shared(folder, _folder_key(config))
            dist.broadcast_object_list(chosen, src=0)
            inputs = starting_from(inputs, config, inputs.run_name, chosen[0])
            on_first_rank(partial(_prepare, folder, config, inputs))
        yield owners[0] if owners else None, inputs


def _prepare(folder: Path, config: TrainConfig, inputs: Inputs) -> None:
    _check_unchanged(folder, config, inputs)
    for path in remove_leftovers(folder):
        logger.info(f"deleted {path}: an incomplete checkpoint of a killed run")
    if present := checkpoints(folder):
        point_to(present[-1])
    n_saves = count_saves(config, inputs.data.clock)
    logger.info(fact_of(describe_space(config, folder, n_saves, world_size=dist.get_world_size())))
    check_space(config, folder, n_saves, world_size=dist.get_world_size())


def clean_up(inputs: Inputs, last: Path) -> None:
    """Delete leftover files and update the link to the newest checkpoint, in case the run was killed right after its
    last save. Does nothing if the folder cannot be owned or written to. Must be called on rank 0 only. last: the last
    checkpoint."""
    if inputs.folder is not None:
        with suppress(ConfigError, DataError, OSError), own(inputs.folder, inputs.run_name):
            remove_leftovers(inputs.folder)
            point_to(last)


def _remove_if_unused(folder: Path) -> None:
    """Remove a folder that this run created but has not written to."""
    with suppress(OSError):
        if all(path.name == FLOCK for path in folder.iterdir()):
            shutil.rmtree(folder)


def _check_unchanged(folder: Path, config: TrainConfig, inputs: Inputs) -> None:
    """Raise ConfigError if another run has saved a checkpoint since this run opened its inputs."""
    if config.save_overwrite and not config.autoresume:
        return
    known = {error.checkpoint for error in inputs.start.corrupt} if inputs.start is not None else set()
    newest = next((path for path in reversed(checkpoints(folder)) if path not in known), None)
    started_from = inputs.start.path if inputs.resuming and inputs.start is not None else None
    if newest != started_from:
        raise ConfigError(
            f"save_folder {folder} now contains {newest}, which another run saved while this run was starting: start "
            "again"
        )


def build_savers(
    config: TrainConfig, inputs: Inputs, owner: Owner | None, mirror: Mirror | None, events: Events
) -> list[CheckpointSaver]:
    """Return the callback that saves checkpoints, or an empty list if there is no save_folder. owner: the owner of the
    folder on rank 0; None on other ranks. Every rank must call this."""
    if inputs.folder is None:
        return []
    start, interval, fsdp = inputs.start, inputs.data.clock.batches(config.save_interval), config.fsdp_config
    saving = Saving(
        folder=inputs.folder,
        interval=interval,
        last_batch=inputs.max_batches,
        retention=_retention(config, inputs),
        gather=fsdp is not None and fsdp.state_dict_type == "full",
        background=config.save_async,
        replicas=(fsdp.data_parallel_replicate_degree or 1) if fsdp is not None else 1,
        timeout=config.dist_timeout,
        on_error=config.on_save_error,
        run_id=inputs.run_id,
        run_name=inputs.run_name,
        config=to_yaml(config),
    )
    # The checkpoint that was just loaded has already been verified against its manifest.
    verified = start.path if start is not None and start.resuming and start.run_id is not None else None
    check_owner = owner.check if owner is not None else _nothing
    saver = CheckpointSaver(saving, verified=verified, check_owner=check_owner, on_saved=partial(_note_saved, events))
    if mirror is not None:
        saver.saver.on_committed.append(mirror.on_committed)
    return [saver]


def _note_saved(events: Events, saved: Written) -> None:
    path, seconds = str(saved.checkpoint), round(saved.seconds, 3)
    events.note(saved.batch, event="saved", path=path, seconds=seconds, bytes=saved.needed)


def _retention(config: TrainConfig, inputs: Inputs) -> Retention:
    interval, every = inputs.data.clock.batches(config.save_interval), config.save_keep_every
    return Retention(newest=config.save_num_checkpoints_to_keep, every=every * interval if every is not None else None)


@contextmanager
def mirrored(config: TrainConfig, inputs: Inputs, signals: StopSignals) -> Iterator[Mirror | None]:
    """Own the run's save folder in an object store for the duration of the context. Yields the Mirror that uploads
    checkpoints, or None for a run without an object store. On exit, all pending uploads are finished, unless the run
    has failed.

    Every rank must call this. Raises ConfigError, on every rank, if another run owns the folder or the object store
    denies access, and DataError if an upload fails.
    """
    remote = open_save_folder(config, inputs.run_name)
    if remote is None or inputs.folder is None:
        yield None
        return
    local, senders = inputs.folder, list[Sender]()

    def take_it() -> None:
        with store_errors_named("save_folder"):
            lease = take(remote, inputs.run_name)
        try:
            _check_unchanged_there(remote, config, inputs)
            check_links(local)
            senders.append(Sender(remote, local, lease, _retention(config, inputs)))
        except BaseException:
            lease.release()
            raise

    on_first_rank(take_it, slow="save_folder/taken")
    mirror = Mirror(
        senders[0] if senders else None, url=remote.url, local=local, stop_on_error=config.on_save_error == "stop"
    )
    try:
        yield mirror
    except RunStopped as stop:
        try:
            _finish(mirror, signals)
        except DataError as error:
            logger.warning(str(error))
            raise stop from None
        # All files in the local folder are now in the store, so paths in the message are replaced with URLs in the
        # store.
        raise RunStopped(stop.code, str(stop).replace(f"{local}/", f"{remote.url}/")) from None
    except BaseException:
        mirror.abandon()
        raise
    else:
        _finish(mirror, signals)


@within(Section.SEND)
def _finish(mirror: Mirror, signals: StopSignals) -> None:
    # The first signal does not interrupt the uploads, in which all ranks take part. A later signal ends the process.
    with signals.deferred():
        mirror.finish()


def _check_unchanged_there(remote: RemoteFolder, config: TrainConfig, inputs: Inputs) -> None:
    """Do the same check as _check_unchanged for the object store, which may not contain all checkpoints of this run."""
    if config.save_overwrite and not config.autoresume:
        return
    known = {error.checkpoint.name for error in inputs.start.corrupt} if inputs.start is not None else set()
    with store_errors_named("save_folder"):
        newer = [Path(name) for name in remote.look().committed if name not in known]
    if inputs.resuming and inputs.start is not None:
        begun = batch_of(inputs.start.path)
        newer = [path for path in newer if batch_of(path) > begun]
    if newer:
        raise ConfigError(
            f"save_folder {remote.url} now contains {newer[-1]}, which another run saved while this run was starting: "
            "start again"
        )


def _folder_key(config: TrainConfig) -> str:
    """The config key that sets the local save folder."""
    return "save_staging_folder" if is_address(config.save_folder or "") else "save_folder"


def _check_shared(folder: Path, key: str) -> None:
    """Raise ConfigError if not all nodes share the folder, because the first save or a later load would then fail."""
    if dist.get_world_size() == 1:
        return
    marker = [folder / f"{PART}{uuid.uuid4().hex}"]
    dist.broadcast_object_list(marker, src=0)
    on_first_rank(marker[0].touch)
    seen = dist.all_gather_object(marker[0].exists())
    on_first_rank(marker[0].unlink)
    if not all(seen):
        ranks = ", ".join(str(rank) for rank, there in enumerate(seen) if not there)
        raise ConfigError(
            f"is {folder}, but the files of rank 0 are not visible on ranks {ranks}: specify a folder that all nodes "
            "share",
            key=key,
        )


@contextmanager
def finishing(savers: Sequence[CheckpointSaver]) -> Iterator[None]:
    """A context manager for training. If training raises an exception, a save in progress is completed first."""
    try:
        yield
    except BaseException:
        with within(Section.UNTIMED):  # no deadline, because `abandon` has its own time limit
            for each in savers:
                each.saver.abandon(each.saving.timeout)
        raise


def _nothing() -> None:
    pass
