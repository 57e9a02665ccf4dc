"""A byte tokenizer and small datasets, for tests of the data packages."""

import json
from pathlib import Path
from types import MappingProxyType

import numpy as np

from data.config.dataset import DatasetConfig
from data.config.loader import DataLoaderConfig
from data.config.source import HFKwargs


class ToyTokenizer:
    """Each byte is a token; 256 ends a document, 257 is padding."""

    name = "toy"
    vocab_size = 258
    bos_token_id = eos_token_id = 256
    pad_token_id = 257
    stop_token_ids = (256,)
    chat_template = None
    special_tokens = MappingProxyType({"<eos>": 256, "<pad>": 257})
    fingerprint = "toy-1"

    def encode(self, text):
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def save_pretrained(self, folder, max_seq_len):
        raise NotImplementedError


def write_jsonl(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions(n: int, start: int = 0) -> list[dict[str, str]]:
    """Return distinct examples of different lengths."""
    return [{"prompt": f"{i}?" + "." * (i % 7), "response": f"{i}!" * (1 + i % 5)} for i in range(start, start + n)]


def dataset_config(folder: Path, **changes) -> DatasetConfig:
    """Return a config for folder/train.jsonl."""
    kwargs = HFKwargs(data_files=str(folder / "train.jsonl"))
    settings = {"hf_name": "json", "hf_kwargs": kwargs, "max_seq_len": 32, "cache_dir": str(folder / "cache")}
    return DatasetConfig(**settings | changes)


def loader_config(folder: Path, num_workers: int = 0, **changes) -> DataLoaderConfig:
    return DataLoaderConfig(
        name="finetuning", dataset=dataset_config(folder, **changes), num_workers=num_workers, persistent_workers=False
    )
