"""A run whose documents are traced: its record, its checkpoints, and the documents of its streams."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from data.base.errors import DataError, Problems
from data.lineage.folder_documents import FolderDocuments
from data.lineage.run_rows import RunRows
from data.mds.folder import MdsFolder
from data.mixing.resume import DataState, read_state
from train.checkpoint.save_folder import RECORD, batch_of
from train.lineage.history import History, Trained
from train.report.reading.record import Record


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint of the run."""

    place: str
    """Path, or address in an object store."""
    batch: int
    trained: Trained


@dataclass(frozen=True, eq=False, kw_only=True)
class TracedRun:
    """A run and its data. The folders of its streams are opened when they are needed."""

    place: str
    """The folder of the record, or its address in an object store."""
    saved: Sequence[str]
    """Paths or addresses of the committed checkpoints, oldest first."""
    record: Record
    history: History
    _rows: dict[str, RunRows] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.record.start.get("run_name") or Path(self.place).name)

    @cached_property
    def state(self) -> DataState:
        """The plan of the newest start."""
        return _state(self.history.weights.plan)

    @cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """The committed checkpoints, oldest first. Raises DataError for a checkpoint that the record does not
        contain."""
        found = []
        for place in self.saved:
            batch = batch_of(Path(place))
            trained = self.history.saved.get(batch)
            # A process can be killed after a save, but before it adds the line.
            if trained is None and self.history.first_batch <= batch <= self.history.n_batches:
                trained = self.history.after(batch)
            if trained is None:
                raise DataError(f"{self.place}/{RECORD} has no line for {place}, so another run wrote the checkpoint")
            found.append(Checkpoint(place=place, batch=batch, trained=trained))
        return found

    @cached_property
    def folders(self) -> dict[str, MdsFolder]:
        """The prepared rows of each stream. Raises ConfigError or DataError with the problems of all streams."""
        problems, found = Problems(), dict[str, MdsFolder]()
        for stream, fingerprint in self.state.streams.items():
            with problems.collect():
                found[stream] = self._open(stream, fingerprint)
        problems.raise_if_any()
        return found

    @cached_property
    def documents(self) -> dict[str, FolderDocuments]:
        """The documents of each stream. Raises DataError with all streams that have no lineage."""
        problems, found = Problems(), dict[str, FolderDocuments]()
        for stream, mds in self.folders.items():
            with problems.collect():
                found[stream] = FolderDocuments(mds, stream)
        problems.raise_if_any()
        return found

    def rows(self, trained: Trained) -> RunRows:
        """The rows of these batches. The result is the same object for all weights with the same plan. A resume may
        have changed the plan of the batches after it."""
        key = json.dumps({**trained.plan, "rows": 0}, sort_keys=True)
        if key not in self._rows:
            sizes = {stream: mds.shard_sizes for stream, mds in self.folders.items()}
            self._rows[key] = RunRows(_state(trained.plan), sizes)
        return self._rows[key]

    def _open(self, stream: str, fingerprint: str) -> MdsFolder:
        label = f"stream {stream}" if stream else "the dataset"
        data = self.record.start.get("data")
        described = (data.get("train_loader") or {}).get(stream) if isinstance(data, Mapping) else None
        folder = described.get("folder") if isinstance(described, Mapping) else None
        if not isinstance(described, Mapping) or not isinstance(folder, str):
            raise DataError(f"{self.place}/{RECORD} does not specify the folder that contains the rows of {label}")
        remote = described.get("remote")
        if remote is None and not Path(folder).is_dir():
            raise DataError(f"the rows of {label} were in {folder}, which does not exist: restore this folder")
        mds = MdsFolder.open(local=folder, remote=remote, split=None, cache_dir="")
        # For rows that contain only tokens, the eos token is part of the fingerprint.
        if fingerprint.partition("-eos")[0] not in ((mds.manifest or {}).get("fingerprint"), mds.fingerprint):
            raise DataError(f"the rows of {label} in {folder} have changed since the run: restore them")
        return mds


def _state(plan: Mapping[str, Any]) -> DataState:
    return read_state({"position": json.dumps(plan)})
