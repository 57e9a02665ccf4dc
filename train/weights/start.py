"""Find the checkpoint that a run starts from, according to autoresume or load_path, and check it before the model is
built."""

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
    """The state to resume from; None if only the weights are loaded."""
    resuming: bool
    """Whether autoresume found the checkpoint in the run's own save folder."""
    run_id: str | None = None
    """The run_id of the run that wrote the checkpoint; None if there is no manifest."""
    corrupt: tuple[CorruptCheckpointError, ...] = ()
    """The errors of newer checkpoints that were skipped because they are corrupt."""

    @property
    def data_state(self) -> Mapping[str, str] | None:
        """The `state_dict` of the training data in the checkpoint (see RowPlan.state)."""
        return {"position": self.state.position} if self.state is not None else None


def find_start(
    config: TrainConfig,
    folder: Path | None,
    corrupt: Sequence[CorruptCheckpointError] = (),
    *,
    remote: RemoteFolder | None = None,
) -> Start | None:
    """Find the checkpoint to start from. With autoresume, this is the newest checkpoint in the save folder that passes
    all checks that do not read its tensors. If there is no such checkpoint, or without autoresume, this is the
    checkpoint at load_path; None if load_path is not set. corrupt: errors of checkpoints that are already known to be
    corrupt. remote: the save folder in an object store; `folder` is then its staging folder, into which the checkpoint
    is fetched.

    Raises ConfigError if the run cannot start from the checkpoint, or may not write to the save folder. Changes only
    the staging folder.
    """
    if remote is not None and not is_first_rank():
        # Rank 0 fetches the checkpoint, and the other ranks use the result of rank 0.
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
        path = path.resolve()  # resolved only once, because `latest` may change at any time
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
                    remote.fetch_verified(path.name, folder, contents)
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
        none = f"save_folder {folder} has no checkpoint to resume from"
        hint = "restore a checkpoint from a copy, or start again with another run_name"
        raise ConfigError("\n  ".join([f"{none}: {hint}", *map(str, corrupt)]))
    return None


def _stopped(error: CorruptCheckpointError) -> ConfigError:
    return ConfigError(
        f"{error} (on_corrupt_checkpoint: stop): restore the checkpoint from a copy, delete the "
        "checkpoint to resume from the previous one, or set on_corrupt_checkpoint=fallback"
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
    """Return the checkpoint to start from instead of `start`, whose tensors are corrupt. Raises ConfigError if there is
    no other checkpoint."""
    if not start.resuming:
        raise error
    if config.on_corrupt_checkpoint == "stop":
        raise _stopped(error)
    found = find_start(config, folder, [*start.corrupt, error], remote=remote)
    assert found is not None, "find_start raises if all checkpoints are corrupt"
    return found


StartingWeights = PretrainedFolder | CheckpointReader


def open_weights(config: TrainConfig, start: Start | None) -> StartingWeights | None:
    """Open the source of the weights that the starting checkpoint does not contain. Return None if the checkpoint
    contains all weights, or if the missing weights are initialized randomly. A checkpoint of a whole model contains all
    weights. A checkpoint of adapters contains all weights except the base. Files on the hub are fetched.
    """
    if start is not None and config.lora is None:
        return None
    if (base := frozen_base(config)) is not None:
        base.check(config.model, "the run's config")
        return base
    name = config.model.pretrained_model_name_or_path
    return PretrainedFolder.open(name, config.model) if name is not None else None


def check_start(path: Path, config: TrainConfig, key: str, *, whole_state: bool) -> tuple[Checkpoint, RunState | None]:
    """Open the checkpoint that was chosen through `key`, and read its state. The state is None if it is not needed, or
    if it is incomplete.

    Raises ConfigError if a run with this config cannot start from the checkpoint. With whole_state, the run resumes
    from the checkpoint instead of loading only its weights; ConfigError is then also raised for changes to keys that
    must not change on a resume.
    """
    subject = f"is {str(path)!r}" if key == "load_path" else f"is true, and the newest checkpoint is {str(path)!r}"
    if not path.exists():
        raise ConfigError(f"{subject}, which does not exist{from_here(path)}", key=key)
    if not is_complete(path):
        inside = checkpoints(resolve_save_folder(path))
        hint = f": set {key}={inside[-1]}, the newest checkpoint in this folder" if inside else ""
        raise ConfigError(
            f"{subject}, but it is not a complete checkpoint (a folder such as ep0-ba100 with {MANIFEST} in it){hint}",
            key=key,
        )
    checkpoint = open_checkpoint(path)
    if isinstance(checkpoint, CheckpointReader) and checkpoint.manifest is not None:
        check_identity(path, checkpoint.manifest)
        checkpoint.read_file(CONFIG)  # verifies the config that is compared next
    state = state_if_any(checkpoint) if whole_state else None
    position = {"position": state.position} if state is not None else None
    refuse_changes(path, config, position, key, whole_state=whole_state)
    if isinstance(checkpoint, CheckpointReader):
        base = config.lora is not None and not checkpoint.holds_adapters
        if base and whole_state:
            raise ConfigError(
                f"{subject}, a whole model, from which a run with lora loads only the frozen base: set "
                "load_weights_only=true",
                key=key,
            )
        checkpoint.check(config.model, "this config's model", None if base else config.lora)
    return checkpoint, state
