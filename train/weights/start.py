"""What a run starts from: the checkpoint that autoresume or load_path means, checked before anything is built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.base.errors import ConfigError, from_here
from train.checkpoint.load import Checkpoint, open_checkpoint
from train.checkpoint.places import resolve_save_folder
from train.checkpoint.reader import CheckpointReader
from train.checkpoint.remote.folder import Contents, RemoteFolder, store_errors_named
from train.checkpoint.remote.staging import is_first_rank, load_path_of, look
from train.checkpoint.save_folder import batch_of, check_identity, check_save_folder, checkpoints, damaged, is_complete
from train.checkpoint.state import RunState, read_state, state_if_any
from train.checkpoint.storage.manifest import CONFIG, MANIFEST, CorruptCheckpointError
from train.config.schema import TrainConfig
from train.resume.explain import refuse_changes
from train.weights.frozen_base import frozen_base
from train.weights.pretrained import PretrainedFolder


@dataclass(frozen=True, kw_only=True)
class Start:
    """The checkpoint that a run starts from."""

    path: Path
    state: RunState | None
    """Where the run goes on from there; None where it takes the weights alone."""
    resuming: bool
    """It is the run's own, found by autoresume."""
    run_id: str | None = None
    """Of the run that wrote it; None where there is no manifest."""
    corrupt: tuple[CorruptCheckpointError, ...] = ()
    """Newer checkpoints that were passed over."""

    @property
    def data_state(self) -> Mapping[str, str] | None:
        """What the training data's `state_dict` was (see RowPlan.state)."""
        return {"position": self.state.position} if self.state is not None else None


def find_start(
    config: TrainConfig,
    folder: Path | None,
    corrupt: Sequence[CorruptCheckpointError] = (),
    *,
    remote: RemoteFolder | None = None,
) -> Start | None:
    """The newest checkpoint in the save folder under autoresume that is not corrupt, as far as that is known before its
    tensors are read, else load_path, else None. `corrupt`: what is known of some of them. remote: the save folder whose
    staging folder `folder` is; from it the checkpoint is fetched.

    Raises ConfigError when the run cannot start from it, or may not write to the save folder. Changes nothing but the
    staging folder.
    """
    if remote is not None and not is_first_rank():
        # Rank 0 fetches; the others take the start that it has found.
        with store_errors_named("save_folder"):
            if config.autoresume and remote.look().committed:
                return None
    elif folder is not None:
        contents = look(remote, folder, config) if remote is not None else None
        check_save_folder(folder, config)
        if config.autoresume and (start := _newest(config, folder, list(corrupt), remote, contents)) is not None:
            return start
    path = load_path_of(config)
    if path is None:
        return None
    if path.is_symlink():
        path = path.resolve()  # once: `latest` may lead to another one a moment later
    checkpoint, state = check_start(path, config, "load_path", whole_state=not config.load_weights_only)
    if frozen_base(config) is not None:
        return None
    if not config.load_weights_only:
        state = state or read_state(checkpoint)
    return Start(path=path, state=state, resuming=False, run_id=_run_id(checkpoint))


def _newest(
    config: TrainConfig,
    folder: Path,
    corrupt: list[CorruptCheckpointError],
    remote: RemoteFolder | None,
    contents: Contents | None,
) -> Start | None:
    without_manifest = damaged(folder)
    there = [folder / name for name in contents.committed] if contents is not None else []
    present = sorted({*checkpoints(folder), *without_manifest, *there}, key=batch_of)
    for path in reversed(present):
        if any(error.checkpoint == path for error in corrupt):
            continue
        try:
            if remote is not None and contents is not None and path in there:
                with store_errors_named("save_folder"):
                    remote.bring(path.name, folder, contents)
            elif path in without_manifest:
                raise CorruptCheckpointError(path, MANIFEST, "is missing")
            return _open(path, config, corrupt)
        except CorruptCheckpointError as error:
            if error.checkpoint != path:
                raise
            if config.on_corrupt_checkpoint == "stop":
                raise _stopped(error) from None
            corrupt.append(error)
    if present:
        none = f"save_folder {folder} has no checkpoint that can be resumed from"
        hint = "restore one of them from a copy, or start again with another run_name"
        raise ConfigError("\n  ".join([f"{none}: {hint}", *map(str, corrupt)]))
    return None


def _stopped(error: CorruptCheckpointError) -> ConfigError:
    return ConfigError(
        f"{error} (on_corrupt_checkpoint: stop): restore it from a copy, delete it to resume from the checkpoint "
        "before it, or write on_corrupt_checkpoint=fallback"
    )


def _open(path: Path, config: TrainConfig, corrupt: Sequence[CorruptCheckpointError]) -> Start:
    checkpoint, state = check_start(path, config, "autoresume", whole_state=True)
    state = state or read_state(checkpoint)
    return Start(path=path, state=state, resuming=True, run_id=_run_id(checkpoint), corrupt=tuple(corrupt))


def _run_id(checkpoint: Checkpoint) -> str | None:
    return checkpoint.manifest.run_id if checkpoint.manifest is not None else None


def fall_back(
    config: TrainConfig,
    folder: Path | None,
    start: Start,
    error: CorruptCheckpointError,
    *,
    remote: RemoteFolder | None = None,
) -> Start:
    """The checkpoint before a start whose tensors have turned out to be corrupt. Raises ConfigError without one."""
    if not start.resuming:
        raise error
    if config.on_corrupt_checkpoint == "stop":
        raise _stopped(error)
    found = find_start(config, folder, [*start.corrupt, error], remote=remote)
    assert found is not None, "find_start raises without a checkpoint that is not corrupt"
    return found


StartingWeights = PretrainedFolder | CheckpointReader


def open_weights(config: TrainConfig, start: Start | None) -> StartingWeights | None:
    """Where the model's weights come from that the start does not bring; None: from nowhere, or they are drawn.

    A checkpoint of a whole model brings all, one of adapters all but their base. From the hub the files are fetched.
    """
    if start is not None and config.lora is None:
        return None
    if (base := frozen_base(config)) is not None:
        base.check(config.model, "the run's config")
        return base
    name = config.model.pretrained_model_name_or_path
    return PretrainedFolder.open(name, config.model) if name is not None else None


def check_start(path: Path, config: TrainConfig, key: str, *, whole_state: bool) -> tuple[Checkpoint, RunState | None]:
    """Opens the checkpoint that `key` names; its state is None where it is not asked for, or has no position.

    Raises ConfigError when a run of this config cannot start from it.
    With whole_state, going on from it and not from its weights alone, nothing may have changed that cannot change.
    """
    subject = f"is {str(path)!r}" if key == "load_path" else f"is true, and the newest checkpoint is {str(path)!r}"
    if not path.exists():
        raise ConfigError(f"{subject}, but there is no such file or folder{from_here(path)}", key=key)
    if not is_complete(path):
        inside = checkpoints(resolve_save_folder(path))
        hint = f": write {key}={inside[-1]}, the newest one there" if inside else ""
        raise ConfigError(
            f"{subject}, but it is no complete checkpoint (a folder such as ep0-ba100 with {MANIFEST} in it){hint}",
            key=key,
        )
    checkpoint = open_checkpoint(path)
    if isinstance(checkpoint, CheckpointReader) and checkpoint.manifest is not None:
        check_identity(path, checkpoint.manifest)
        checkpoint.read_file(CONFIG)  # what is compared next is what was written
    state = state_if_any(checkpoint) if whole_state else None
    position = {"position": state.position} if state is not None else None
    refuse_changes(path, config, position, key, whole_state=whole_state)
    if isinstance(checkpoint, CheckpointReader):
        base = config.lora is not None and not checkpoint.holds_adapters
        if base and whole_state:
            raise ConfigError(
                f"{subject}, a whole model, of which a run with lora takes the weights alone, as its frozen base: "
                "write load_weights_only=true",
                key=key,
            )
        checkpoint.check(config.model, "this config's model", None if base else config.lora)
    return checkpoint, state
