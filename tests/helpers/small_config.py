"""A minimal YAML, and the errors of changed versions of it."""

import re
from pathlib import Path

import pytest

from data.base.errors import ConfigError
from train.config.load import read_config

LEAST = """\
max_seq_len: 64
model: {preset: tiny}
tokenizer: {name: some/folder}
train_loader:
  name: finetuning
  dataset: {hf_name: json, max_seq_len: '${max_seq_len}'}
optimizer: {name: adamw, lr: 1e-3}
scheduler: {name: constant_with_warmup}
max_duration: 10ba
global_train_batch_size: 8
"""


def load(folder: Path, *overrides: str, text: str = LEAST):
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return read_config(str(path), overrides)


def refusal(folder: Path, *overrides: str, text: str = LEAST) -> str:
    """Return the message of the ConfigError without folder and line, as if all values were in the file."""
    message = placed_refusal(folder, *overrides, text=text)
    return re.sub(r"^( *)(small\.yaml(:\d+)?|command line): ", r"\1small.yaml: ", message, flags=re.MULTILINE)


def placed_refusal(folder: Path, *overrides: str, text: str = LEAST) -> str:
    """Return the message of the ConfigError without the folder."""
    with pytest.raises(ConfigError) as caught:
        load(folder, *overrides, text=text)
    return str(caught.value).replace(f"{folder / 'small.yaml'}", "small.yaml")
