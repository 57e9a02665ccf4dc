"""Exports checkpoints to Hugging Face folders while the run waits."""

import shutil
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from data.base import console
from data.base.durations import Clock
from data.base.errors import ConfigError
from data.stores.store import Store, StoreError
from train.callbacks.checkpoint_saver import CheckpointSaver
from train.checkpoint.remote.folder import store_errors_named
from train.checkpoint.remote.staging import open_exports
from train.checkpoint.save_folder import batch_of, check_writable, checkpoints, fill_in
from train.config.schema import TrainConfig
from train.distributed.first_rank import from_first_rank
from train.export.export import export
from train.models.precision import BY_DTYPE, Precision
from train.supervision.hangs.deadlines import Section
from train.supervision.hangs.sections import within

_KEY = "callbacks.hf_checkpointer"


def build_hf_checkpointer(
    config: TrainConfig, clock: Clock, run_name: str, checkpoint_folder: Path | None, *, resuming: bool
) -> "HFCheckpointer | None":
    """Build the configured callback, if any. Raises ConfigError if its interval is not a multiple of the checkpoint
    interval, or if its folder contains exports of another run."""
    wanted = config.callbacks.hf_checkpointer
    if wanted is None:
        return None
    assert clock.max_batches is not None
    assert checkpoint_folder is not None, "TrainConfig checks it"
    interval, saved = clock.batches(wanted.save_interval), clock.batches(config.save_interval)
    if interval % saved and interval < clock.max_batches:
        raise ConfigError(
            f"is {wanted.save_interval} ({interval} batches), but checkpoints are saved every "
            f"{saved} batches: use a multiple of {saved} batches",
            key=f"{_KEY}.save_interval",
        )
    key, staging = f"{_KEY}.save_folder", str(Path(config.save_staging_folder, "exports"))
    folder = fill_in(wanted.save_folder, run_name, key, staging) / "huggingface"
    remote = open_exports(wanted.save_folder, run_name, key)
    if remote is None:
        present = sorted(path.name for path in folder.glob("ba*")) if folder.is_dir() else []
    else:
        with store_errors_named(key):
            present = sorted({name.split("/")[1] for name in remote.store.sizes("huggingface/ba")})
    if present and not (resuming or config.save_overwrite):
        raise ConfigError(
            f"is {wanted.save_folder!r}, but {folder if remote is None else f'{remote.url}/huggingface'} contains "
            f"exports of another run ({', '.join(present[:3])}): specify another folder, or set save_overwrite=true",
            key=key,
        )
    check_writable(folder, key)
    store = None if remote is None else remote.store
    return HFCheckpointer(checkpoint_folder, folder, interval, clock.max_batches, BY_DTYPE[wanted.precision], store)


class HFCheckpointer(Callback):
    """Exports the newest checkpoint to FOLDER/baN, every `interval` batches and after the last batch.

    This callback runs after CheckpointSaver and waits until the checkpoint is saved. Rank 0 exports the checkpoint and
    verifies the export. The other ranks poll the store for the result and do not wait in a collective, because an
    export may take longer than the collective's timeout. If an export fails, the error is logged and training
    continues; `check` raises the error after training.
    """

    def __init__(
        self,
        checkpoint_folder: Path,
        folder: Path,
        interval: int,
        last_batch: int,
        precision: Precision,
        store: Store | None = None,
    ) -> None:
        """store: the object store to which an export in `folder` is uploaded. The local copy is then deleted."""
        self.checkpoint_folder, self.folder, self.store = checkpoint_folder, folder, store
        self.interval, self.last_batch = interval, last_batch
        self.precision: Precision = precision
        self.failed: dict[int, str] = {}

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        batch = state.timestamp.batch.value
        if self._is_due(batch):
            for saver in state.callbacks:
                if isinstance(saver, CheckpointSaver):
                    saver.wait()
            self._export_on_first_rank(batch)

    def catch_up(self, batch: int) -> None:
        """Export the checkpoint that a run resumes from, unless it has already been exported. Every rank must call
        this."""
        if self._is_due(batch):
            self._export_on_first_rank(batch, only_if_missing=True)

    def check(self) -> None:
        """Raise ConfigError, on every rank, if an export failed."""
        if self.failed:
            message = "; ".join(f"ba{batch}: {why}" for batch, why in self.failed.items())
            raise ConfigError(
                f"{_KEY}: not every checkpoint was exported ({message}): export the missing checkpoints with "
                "scripts/convert_checkpoint_to_hf.py"
            )

    def _is_due(self, batch: int) -> bool:
        return batch > 0 and (batch % self.interval == 0 or batch == self.last_batch)

    @within(Section.UNTIMED)
    def _export_on_first_rank(self, batch: int, *, only_if_missing: bool = False) -> None:
        why = ""
        if dist.get_global_rank() == 0:
            try:
                if not (only_if_missing and self._is_exported(batch)):
                    self._export(batch)
            except (ConfigError, StoreError, OSError) as error:
                why = str(error)
                console.logger.warning(f"hf_checkpointer: ba{batch} was not exported: {why}")
        why = from_first_rank(f"hf_checkpointer/{batch}", why)
        if why:
            self.failed[batch] = why

    def _is_exported(self, batch: int) -> bool:
        if self.store is None:
            return (self.folder / f"ba{batch}").exists()
        return bool(self.store.sizes(f"huggingface/ba{batch}/config.json"))

    def _export(self, batch: int) -> None:
        saved = [path for path in checkpoints(self.checkpoint_folder) if batch_of(path) == batch]
        if not saved:
            raise ConfigError(f"{self.checkpoint_folder} has no checkpoint of this batch")
        output = self.folder / f"ba{batch}"
        if output.is_dir():
            # This folder was written before the run was resumed from an earlier checkpoint.
            shutil.rmtree(output)
        console.logger.info(f"hf_checkpointer: exporting {saved[-1].name} to {output}")
        export(saved[-1], output, self.precision, verify=True)
        if self.store is not None:
            console.logger.info(f"hf_checkpointer: uploading the export to {self.store.url}/huggingface/ba{batch}")
            self.store.send_folder(output, f"huggingface/ba{batch}", last="config.json")
            shutil.rmtree(output)
