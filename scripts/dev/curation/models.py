"""Trains a small DBRX model on text, and computes its loss on other texts."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash
import yaml

from data.base.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
BASE = ROOT / "yamls/examples/stdlib_pretrain.yaml"
"""The model and the optimizer are those of this config."""


def train(name: str, data_files: Sequence[Path], seed: int, steps: int, folder: Path) -> Path:
    """Train on text files for a number of steps, and return the folder of checkpoints. A run that is complete is not
    repeated, unless the files have changed. Raises ConfigError if the run fails."""
    digest = xxhash.xxh3_64(b"".join(file.read_bytes() for file in data_files)).hexdigest()
    run = folder / f"{name}-{seed}-{steps}-{digest[:8]}"
    checkpoints, config = run / "checkpoints", run / "config.yaml"
    if (run / "complete").exists():
        return checkpoints
    run.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(_config(data_files, seed, steps, checkpoints), sort_keys=False))
    print(f"training {run}", file=sys.stderr, flush=True)
    with (run / "log.txt").open("wb") as log:
        command = [sys.executable, "train.py", str(config.absolute())]
        ended = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=dict(os.environ))
    if ended.returncode:
        raise ConfigError(f"training failed with exit code {ended.returncode}: see {run / 'log.txt'}")
    (run / "complete").touch()
    return checkpoints


def _config(data_files: Sequence[Path], seed: int, steps: int, checkpoints: Path) -> dict[str, Any]:
    config = _base()
    format = "parquet" if data_files[0].suffix == ".parquet" else "json"
    files = [str(file.absolute()) for file in data_files]
    dataset = {"hf_name": format, "hf_kwargs": {"data_files": files}, "max_seq_len": config["max_seq_len"]}
    return config | {
        "run_name": "curation-effect",
        "seed": seed,
        "train_loader": {"name": "text", "dataset": dataset, "num_workers": 0},
        "max_duration": f"{steps}ba",
        "save_interval": f"{steps}ba",
        "save_folder": str(checkpoints.absolute()),
        "save_overwrite": True,
        "autoresume": False,
        "device": "cpu",
    }


def tokens_per_step() -> int:
    config = _base()
    return config["global_train_batch_size"] * config["max_seq_len"]


def _base() -> dict[str, Any]:
    return yaml.safe_load(BASE.read_text(encoding="utf-8"))


def losses(checkpoints: Path, evals: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The mean loss per token, in nats, over the texts of each evaluation set."""
    import torch

    from train.generation.decoders import DbrxDecoder
    from train.generation.open_model import open_model

    opened = open_model(checkpoints, "cpu")
    assert isinstance(opened.decoder, DbrxDecoder)
    model, encode = opened.decoder.model, opened.tokenizer.encode
    length = _base()["max_seq_len"]
    means = {}
    with torch.inference_mode():
        for name, texts in evals.items():
            total, count = 0.0, 0
            for text in texts:
                # As in training, a document is divided into rows.
                ids = list(encode(text))
                for start in range(0, len(ids) - 1, length):
                    row = torch.tensor([ids[start : start + length + 1]])
                    found = model(row[:, :-1].contiguous(), labels=row[:, 1:].contiguous()).losses_BS
                    assert found is not None
                    total, count = total + float(found.sum()), count + found.numel()
            means[name] = total / count
    return means


def read_evals(folder: Path) -> dict[str, list[str]]:
    """The texts of the evaluation sets of make_curation_data.py, by name. The text of a question contains its
    answer."""
    evals = {}
    for file in sorted(folder.glob("*.jsonl")):
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        evals[file.stem] = [
            each["text"] if "text" in each else f"{each['prompt'].strip()}\n{each['response']}" for each in records
        ]
    return evals
