"""A small real run: a JSONL file, a byte-level vocabulary, and a config that reads both."""

import base64
import json
import random
from pathlib import Path

import torch
import yaml

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven")


def write_toy_run(folder: Path, n_examples: int = 400) -> str:
    """Write train.jsonl, eval.jsonl, vocab.tiktoken and config.yaml; return the path of the config."""
    draw = random.Random(0)
    for name, count in (("train", n_examples), ("eval", 21)):
        lines = []
        for _ in range(count):
            words = draw.choices(WORDS, k=draw.randint(1, 6))
            lines.append(json.dumps({"prompt": " ".join(words) + "\n", "response": " ".join(reversed(words))}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    vocab = "".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    (folder / "vocab.tiktoken").write_text(vocab)
    (folder / "config.yaml").write_text(yaml.safe_dump(_config(folder), sort_keys=False))
    return str(folder / "config.yaml")


def _loader(folder: Path, name: str) -> dict:
    dataset = {
        "hf_name": "json",
        "hf_kwargs": {"data_files": str(folder / f"{name}.jsonl")},
        "max_seq_len": "${max_seq_len}",
        "cache_dir": str(folder / "cache"),
    }
    return {"name": "finetuning", "dataset": dataset, "num_workers": 0}


def _config(folder: Path) -> dict:
    return {
        "run_name": "toy",
        "max_seq_len": 128,
        "model": {
            "preset": "tiny",
            "d_model": 32,
            "n_layers": 2,
            "vocab_size": 320,
            "attn_config": {"attn_pdrop": 0.1},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "moe_jitter_eps": 0.05},
            "resid_pdrop": 0.1,
            "emb_pdrop": 0.1,
        },
        "tokenizer": {"name": "tiktoken", "kwargs": {"vocab_file": str(folder / "vocab.tiktoken")}},
        "train_loader": _loader(folder, "train"),
        "eval_loader": _loader(folder, "eval"),
        "optimizer": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.1},
        "scheduler": {"name": "cosine_with_warmup", "t_warmup": "2ba"},
        "algorithms": {"gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 1.0}},
        "max_duration": "10ba",
        "eval_interval": "5ba",
        "global_train_batch_size": 8,
        "device_train_microbatch_size": 2,
        "device_eval_batch_size": 2,
        "precision": "amp_bf16",
        # Tests also run on machines with a GPU that torch cannot use.
        "device": None if torch.cuda.is_available() else "cpu",
        "save_folder": str(folder / "{run_name}"),
        "save_interval": "4ba",
        # Without a save_folder, logs also go there instead of the working directory.
        "log_folder": str(folder / "{run_name}"),
        "progress_bar": False,
        "log_to_console": False,
    }


def refused(path: str, overrides: list[str]) -> str:
    """Return the message of the ConfigError with which a run of the config ends."""
    from data.base.errors import ConfigError
    from train.config.load import read_config
    from train.run.fit import fit

    try:
        fit(read_config(path, overrides))
    except ConfigError as error:
        return str(error)
    raise AssertionError("not refused")
