"""Small real runs, each of which is created once. A fault is injected into a copy of a run, and the result is compared
with the result of a run without a fault."""

import base64
import hashlib
import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from scripts.bench.faults.processes import OTHERS_SECONDS, Ended, run

SAVED, LAST = (2, 4, 6), 8
"""A run has checkpoints after the batches in SAVED. A resumed run trains until batch LAST."""

_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven")

# The possible outcomes of a fault.
SAME = "same model"
FELL_BACK = "cause reported, resumed from an older checkpoint, same model"
REFUSED = "error that names the cause"
UNNAMED = "error that does not name the cause"
CRASHED = "a traceback"
OTHER_MODEL = "another model"
SILENT = "cause not reported, resumed from an older checkpoint"
NO_END = "did not end"
SKIPPED = "not possible here"


@dataclass(frozen=True)
class Case:
    """A fault that is injected once or several times."""

    name: str
    expected: str
    """The expected outcome of each trial."""
    trials: Callable[["Lab"], Iterator[str]]
    """Yields the outcome of each trial."""


class Lab:
    """Creates save folders in a temporary folder, and runs commands on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._numbers = folder, itertools.count()
        self.config = write_input(folder)
        self._runs: dict[tuple[int, int], Path] = {}
        self._models: dict[tuple[int, int], str] = {}

    def new(self) -> Path:
        """A new folder."""
        folder = self.folder / f"{next(self._numbers):04}"
        folder.mkdir()
        return folder

    def copy(self, ranks: int = 1, seed: int = 17) -> Path:
        """A copy of the save folder of a run with this number of ranks and three checkpoints."""
        key = ranks, seed
        if key not in self._runs:
            folder = self.new() / "run"
            flags = (f"save_folder={folder}", f"max_duration={SAVED[-1]}ba", f"seed={seed}")
            _succeeded(run("train.py", self.config, *flags, ranks=ranks))
            self._runs[key] = folder
        copy = self.new() / "run"
        shutil.copytree(self._runs[key], copy, symlinks=True)
        return copy

    def resume(
        self,
        save_folder: Path,
        *overrides: str,
        ranks: int = 1,
        hook: Callable[[], None] | None = None,
        others_seconds: float = OTHERS_SECONDS,
    ) -> Ended:
        """Resume a run until its last batch."""
        flags = (f"save_folder={save_folder}", f"max_duration={LAST}ba", "autoresume=true", *overrides)
        return run("train.py", self.config, *flags, ranks=ranks, hook=hook, others_seconds=others_seconds)

    def model(self, ranks: int, batches: int = LAST) -> str:
        """The hash of the exported weights of an uninterrupted run without a fault."""
        key = ranks, batches
        if key not in self._models:
            folder = self.new() / "run"
            flags = (f"save_folder={folder}", f"max_duration={batches}ba")
            _succeeded(run("train.py", self.config, *flags, ranks=ranks))
            self._models[key] = self.exported(folder)
        return self._models[key]

    def exported(self, save_folder: Path) -> str:
        """The hash of the exported weights of the newest checkpoint."""
        output = self.new() / "hf"
        _succeeded(self.export(save_folder, output))
        files = sorted(output.glob("*.safetensors"))
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    def export(self, checkpoint: Path, output: Path) -> Ended:
        flags = ("--composer_path", str(checkpoint), "--hf_output_path", str(output), "--no-verify")
        return run("scripts/convert_checkpoint_to_hf.py", *flags)

    def outcome(self, ended: Ended, save_folder: Path, *names: str, ranks: int = 1) -> str:
        """The outcome of a resumed run. If the run reports a fault, its output must contain each of `names`."""
        if (seen := refusal(ended, *names)) is not None:
            return seen
        if self.exported(save_folder) != self.model(ranks):
            return OTHER_MODEL
        if "RESUMING FROM AN EARLIER CHECKPOINT" not in ended.text:
            return SAME
        return FELL_BACK if all(name in ended.text for name in names) else SILENT


def refusal(ended: Ended, *names: str) -> str | None:
    """Return the outcome of a command that failed, or None if the command succeeded."""
    if ended.code is None:
        return NO_END
    if ended.crashed:
        return CRASHED
    if ended.code:
        return REFUSED if all(name in ended.text for name in names) else UNNAMED
    return None


def _succeeded(ended: Ended) -> None:
    if ended.code != 0:
        raise RuntimeError(f"a run without a fault failed with exit code {ended.code}:\n{ended.text}")


def write_input(folder: Path) -> str:
    """Write train.jsonl, other.jsonl, vocab.tiktoken and a config with dropout; return the path of the config."""
    for seed, name in enumerate(("train", "other")):
        draw, lines = random.Random(seed), []
        for _ in range(400):
            words = draw.choices(_WORDS, k=draw.randint(1, 6))
            lines.append(json.dumps({"prompt": " ".join(words) + "\n", "response": " ".join(reversed(words))}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    vocab = "".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}\n" for byte in range(256))
    (folder / "vocab.tiktoken").write_text(vocab)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(_config(folder), sort_keys=False))
    return str(path)


def _config(folder: Path) -> dict:
    dataset = {
        "hf_name": "json",
        "hf_kwargs": {"data_files": str(folder / "train.jsonl")},
        "max_seq_len": 128,
        "cache_dir": str(folder / "cache"),
    }
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
        "train_loader": {"name": "finetuning", "dataset": dataset, "num_workers": 0},
        "optimizer": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.1},
        # This schedule does not depend on max_duration, which is increased on resume.
        "scheduler": {"name": "constant_with_warmup", "t_warmup": "2ba"},
        "algorithms": {"gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 1.0}},
        "global_train_batch_size": 8,
        "device_train_microbatch_size": 2,
        "precision": "fp32",
        "device": "cpu",
        "save_interval": "2ba",
        "progress_bar": False,
        "log_to_console": False,
    }
