"""A callback that sends committed checkpoints from the staging folder to the object store during a run. The callback
runs on every rank."""

import json
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch.distributed.distributed_c10d import _get_default_store

from data.base.console import logger as console
from data.base.console import notice
from data.base.errors import DataError
from train.checkpoint.remote.folder import files_beside, store_errors_named
from train.checkpoint.remote.sender import Sender
from train.checkpoint.save_folder import batch_of, checkpoints
from train.distributed.first_rank import from_first_rank, on_first_rank

PENDING = 2
"""Maximum number of unsent checkpoints while training continues: one that is being sent, and one that is waiting."""
_FAILED = "mirror/failed"
"""Key in torch.distributed's store. The value is the batch before which all ranks stop, and the reason."""


class Mirror(Callback):
    """Passes each committed checkpoint to a Sender. If sending has failed and on_save_error is stop, or if another run
    has taken over the folder, all ranks raise DataError before one of the next two steps."""

    def __init__(self, sender: Sender | None, *, url: str, local: Path, stop_on_error: bool) -> None:
        """sender: the Sender on rank 0; None on all other ranks."""
        self.url, self._local, self._sender, self._stop_on_error = url, local, sender, stop_on_error
        self._stop: tuple[int, str] | None = None
        self._warned: set[Path] = set()
        self._commits = 0

    def begin(self, *, resuming: bool) -> None:
        """Prepare the store. Every rank must call this after the local save folder is prepared, before the first
        step."""

        def send() -> None:
            assert self._sender is not None
            self._sender.poll()
            if (text := self._problem()) is not None:
                raise DataError(text)
            folder = self._sender.folder
            if not resuming:
                folder.clear()
            contents = folder.look()
            folder.store.abandon_uploads()
            here = {path.name: path for path in self._kept()}
            for name in contents.incomplete:
                if name not in here:
                    console.info(f"deleting {self.url}/{name}: it is incomplete, because a run was killed")
                    folder.remove(name, contents)
            folder.store.send(files_beside(self._local))
            self._sender.begin()
            for name, path in here.items():
                if name not in contents.committed:
                    console.info(
                        f"{self.url}/{name}: sending a checkpoint that an earlier start of the run did not send"
                    )
                    self._sender.add(path)

        def send_named() -> None:
            with store_errors_named():
                send()

        on_first_rank(send_named, slow="mirror/begun")

    def on_committed(self, checkpoint: Path) -> None:
        """Start sending a checkpoint, and wait until at most PENDING checkpoints are unsent. Every rank must call
        this."""
        self._commits += 1
        try:
            if self._sender is not None:
                self._sender.poll()
                self._sender.retry()
                self._sender.add(checkpoint)
                if len(self._sender.unsent) > PENDING:
                    console.info(f"{self.url}: waiting until an earlier checkpoint is sent")
                self._sender.wait(PENDING)
        finally:
            # The other ranks wait for rank 0 without a time limit. A collective could time out.
            from_first_rank(f"mirror/{self._commits}", "")

    def batch_start(self, state: State, logger: Logger) -> None:
        batch = state.timestamp.batch.value
        if self._sender is not None:
            self._sender.poll()
            if self._stop is None and (text := self._problem()) is not None:
                several = dist.get_world_size() > 1
                self._stop = batch + several, text
                if several:
                    # The other ranks read this value before their next step, so they stop at the same batch even if
                    # they are one step behind.
                    _get_default_store().set(_FAILED, json.dumps(self._stop))
        elif self._stop is None and _get_default_store().check([_FAILED]):  # pyright: ignore[reportAttributeAccessIssue]: torch's stubs lack it
            self._stop = json.loads(_get_default_store().get(_FAILED))
        if self._stop is not None and batch >= self._stop[0]:
            raise DataError(self._stop[1])

    def seconds_to_send(self) -> float:
        """Estimate the time, in seconds, to send all unsent checkpoints and one more checkpoint, based on the longest
        time that it took to send a checkpoint. The estimate is 0 if no checkpoint has been sent yet, and on all ranks
        except rank 0."""
        return (len(self._sender.unsent) + 1) * self._sender.longest if self._sender is not None else 0.0

    def finish(self) -> None:
        """Wait until everything is sent. Every rank must call this. Raises DataError on every rank if sending the
        newest checkpoint failed."""
        text = ""
        if self._sender is not None:
            if not self._stop_on_error:
                self._sender.retry()
            if self._sender.unsent:
                notice(f"{self.url}: waiting for {len(self._sender.unsent)} checkpoint(s) to be sent")
            self._sender.end()
            text = self._problem(last=True) or ""
        text = from_first_rank("mirror/finished", text)
        dist.barrier()  # rank 0 waits, because its process hosts a store from which the other ranks read
        if text:
            raise DataError(text)

    def abandon(self) -> None:
        """Release the folder. The next start of the run sends unsent checkpoints."""
        if self._sender is not None:
            self._sender.close()

    def _kept(self) -> list[Path]:
        """Return the checkpoints in the staging folder that are not superseded, and therefore belong in the store."""
        assert self._sender is not None
        present = [path for path in checkpoints(self._local) if path.is_dir()]
        superseded = self._sender.retention.superseded(present, batch_of(present[-1])) if present else []
        return [path for path in present if path not in superseded]

    def _problem(self, *, last: bool = False) -> str | None:
        assert self._sender is not None
        if self._sender.lost is not None:
            return f"{self._sender.lost}: this run stops and sends no more checkpoints"
        if self._sender.failed:
            order, reason = self._sender.failed[-1]
            text = f"save_folder {self.url}: {order.name} was not sent: {reason}. The checkpoint is in {self._local}"
            if last or self._stop_on_error:
                return f"{text}; the next start with autoresume=true sends it"
            if order.path not in self._warned:
                self._warned.add(order.path)
                console.warning(f"{text}, and will be sent with the next checkpoint (on_save_error: warn)")
        if last and self._sender.end_error is not None:
            return f"save_folder {self.url}: not all files were sent: {self._sender.end_error}"
        return None
