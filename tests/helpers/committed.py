"""Commit checkpoints that tests have written or changed, in the same way as a run does."""

import json
from pathlib import Path

from train.checkpoint.storage.digests import digest_file, text_hash
from train.checkpoint.storage.manifest import MANIFEST, Manifest, write_manifest


def commit(checkpoint: Path, run_id: str = "a-run") -> Path:
    """Write a manifest for the current files."""
    files = {path.name: digest_file(path) for path in checkpoint.iterdir() if path.name != MANIFEST}
    epoch, _, batch = checkpoint.name.rpartition("ep")[2].partition("-ba")
    about = Manifest(
        run_id=run_id,
        run_name="run",
        batch=int(batch),
        epoch=int(epoch),
        written="2026-01-01T00:00:00+00:00",
        world_size=1,
        versions={},
        files=files,
    )
    write_manifest(checkpoint, about)
    return checkpoint


def write_run_file(folder: Path, run_id: str) -> None:
    """Write the save folder's run.json."""
    run = {"run_id": run_id, "tokenizer": {}}
    whole = {"run": run, "xxh3_128": text_hash(json.dumps(run, sort_keys=True))}
    (folder / "run.json").write_text(json.dumps(whole))
