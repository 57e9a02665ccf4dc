"""Checkpoints without a run. They contain a few bytes, or a few tensors and the state of a run."""

from collections.abc import Mapping
from pathlib import Path

import torch

from tests.helpers.committed import commit
from train.checkpoint.saving.save import save_checkpoint
from train.checkpoint.state import RunState, encode_random, to_json
from train.checkpoint.storage.manifest import Manifest

CONFIG = """\
max_seq_len: 64
model: {preset: tiny}
tokenizer: {name: some/folder}
train_loader: {name: finetuning, dataset: {hf_name: json, max_seq_len: 64}}
optimizer: {name: adamw, lr: 1.0e-3}
scheduler: {name: constant_with_warmup}
max_duration: 100ba
save_interval: 10ba
global_train_batch_size: 8
"""


def write_save_folder(folder: Path, *batches: int) -> Path:
    """Write committed checkpoints without tensors, and config.yaml."""
    for batch in batches:
        checkpoint = folder / f"ep0-ba{batch}"
        checkpoint.mkdir(parents=True)
        (checkpoint / ".metadata").write_bytes(b"index")
        (checkpoint / "state.json").write_text("{}")
        (checkpoint / "__0_0.distcp").write_bytes(f"{batch:04}".encode() * 1000)
        commit(checkpoint)
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def flip(file: Path, offset: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[offset] ^= 1
    file.write_bytes(data)


def write_checkpoint(
    folder: Path, tensors: Mapping[str, torch.Tensor], *, batch: int = 10, lr: float = 1e-3, config: str = CONFIG
) -> Path:
    """Write a checkpoint. The keys of tensors are those of checkpoints (see train/checkpoint/reader.py)."""
    checkpoint = folder / f"ep0-ba{batch}"
    folder.mkdir(parents=True, exist_ok=True)
    random = {"python": (3, (1, 2), None), "numpy": ("MT19937", torch.zeros(2).numpy(), 0, 0, 0.0)}
    state = RunState(
        timestamp={"batch": batch, "total_wct": torch.rand(()).item()},
        position="{}",
        rank_zero_seed=1,
        callbacks={},
        optimizer="AdamW",
        param_groups=[{"name": "parameters", "lr": lr, "initial_lr": lr, "params": ["w"]}],
        random=[encode_random(random)],
    )
    about = Manifest(
        run_id="a-run", run_name="run", batch=batch, epoch=0, written="2026-01-01", world_size=1, versions={}
    )
    saved = save_checkpoint(checkpoint, tensors, state=to_json(state), config=config, about=about)
    assert saved.refused is None
    return checkpoint
