"""A checkpoint of adapters (LoRA) with its frozen base: merged into a whole model, or as a folder that PEFT loads.

Both are written a few rows at a time: neither the base nor the sum is ever in memory.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data.errors import ConfigError
from train.checkpoint import frozen_base
from train.checkpoint_reader import CheckpointReader
from train.config import TrainConfig
from train.hf.finite import is_finite, of_checkpoint
from train.hf.model_card import front_matter, lora_table
from train.hf.pretrained import KEY, PretrainedFolder
from train.hf.raw_rows import Piece
from train.hf.weights import Precision, TensorSource, n_bytes, row_blocks, write_file, write_json
from train.models.config import LoraConfig, ModelConfig
from train.models.init import draw_rows, init_std
from train.plan import adapted_shapes, adapter_name, adapter_shapes, parameter_shapes
from train.reader import load_saved_config

PEFT_WEIGHTS = "adapter_model.safetensors"
BASE = "base.json"
"""In the save folder of a run with lora: the fingerprint of the base, which its checkpoints do not hold."""


def whole_weights(reader: CheckpointReader, config: TrainConfig) -> TensorSource:
    """All weights of the model in a checkpoint: what it holds or, where that is adapters, these merged into their base.

    Raises ConfigError when the checkpoint is not whole or not of this config, or the base is not there any more.
    """
    beside = reader.checkpoint.parent / "config.yaml"
    reader.check(config.model, str(beside), config.lora)
    if config.lora is None:
        return reader
    try:
        base = frozen_weights(config)
    except ConfigError as error:
        raise ConfigError(
            f"{reader.checkpoint} holds adapters alone, and their base cannot be read: {error}; where it has moved, "
            f"write its new place into {beside}"
        ) from None
    check_base(reader.checkpoint, base, config)
    return MergedWeights(base, reader, config.model, config.lora)


def frozen_weights(config: TrainConfig) -> TensorSource:
    """The base that a run with lora froze."""
    checkpoint, name = frozen_base(config), config.model.pretrained_model_name_or_path
    if checkpoint is not None:
        checkpoint.check(config.model, "the run's config")
        return checkpoint
    return DrawnWeights(config.model, config.seed) if name is None else PretrainedFolder.open(name, config.model)


def fingerprint(base: TensorSource) -> str:
    """Of the first and the last row of every tensor, in fp32: the same for the same weights wherever they lie."""
    digest = hashlib.blake2b(digest_size=16)
    for name, shape in sorted(base.shapes.items()):
        digest.update(name.encode())
        for row in (0, shape[0] - 1):
            numbers = torch.empty(1, *shape[1:])
            base.rows(name, row, row + 1, numbers)
            digest.update(numbers.numpy().tobytes())
    return digest.hexdigest()


def note_base(folder: Path, base: TensorSource) -> None:
    """Leaves the base's fingerprint in a save folder."""
    part = folder / f".{BASE}.part"
    write_json(part, {"fingerprint": fingerprint(base)})
    part.replace(folder / BASE)


def check_base(checkpoint: Path, base: TensorSource, config: TrainConfig) -> None:
    """Raises ConfigError when the adapters in the checkpoint were trained above other weights than these.

    Without what `note_base` leaves beside it nothing is known.
    """
    noted = checkpoint.resolve().parent / BASE
    if not noted.is_file():
        return
    try:
        then = json.loads(noted.read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{noted} cannot be read: {error!r}") from None
    if then != fingerprint(base):
        name = config.model.pretrained_model_name_or_path
        whose = f"those drawn from seed {config.seed}" if name is None else f"those in {name} ({KEY})"
        if frozen_base(config) is not None:
            whose = f"those in {config.load_path} (load_path)"
        raise ConfigError(
            f"{checkpoint} holds adapters that were trained above other weights than {whose}: put the same base back "
            "in its place, or write where it is"
        )


class DrawnWeights:
    """The initial weights of a run that names none: drawn again."""

    files: Sequence[Path] = ()

    def __init__(self, model: ModelConfig, seed: int) -> None:
        self.model, self.seed = model, seed
        self.shapes = parameter_shapes(model)

    def pieces(self, name: str, dtype: torch.dtype) -> None:
        return None

    def rows(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        out.copy_(draw_rows(self.seed, name, self.shapes[name], start, stop, init_std(self.model, name)))


class MergedWeights:
    """W + alpha / r * B A for what has an adapter, added in fp32; the base's own rows for the rest."""

    def __init__(self, base: TensorSource, adapters: CheckpointReader, model: ModelConfig, lora: LoraConfig) -> None:
        self.base, self.adapters, self.lora = base, adapters, lora
        self.shapes = parameter_shapes(model)
        self.files = [*base.files, *adapters.files]
        self._adapted = set(adapted_shapes(model, lora))
        self._F = model.ffn_config.ffn_hidden_size
        self._held = "", torch.empty(0)

    def pieces(self, name: str, dtype: torch.dtype) -> Sequence[Piece] | None:
        return None if name in self._adapted else self.base.pieces(name, dtype)

    def rows(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        if name not in self._adapted:
            self.base.rows(name, start, stop, out)
            return
        merged = torch.empty(out.shape, dtype=torch.float32)
        self.base.rows(name, start, stop, merged)
        place, r = adapter_name(name), self.lora.r
        B = torch.empty(stop - start, r)
        self.adapters.rows(f"{place}.lora_B", start, stop, B)
        # Of experts with an A each, those of the experts that these rows belong to.
        height = self._F if self.lora.per_expert and not name.endswith(".weight") else self.shapes[name][0]
        for expert in range(start // height, math.ceil(stop / height)):
            mine = slice(max(expert * height - start, 0), min((expert + 1) * height, stop) - start)
            merged[mine].addmm_(B[mine], self._A(f"{place}.lora_A", expert, out.shape[1]), alpha=self.lora.scale)
        out.copy_(merged)

    def _A(self, name: str, expert: int, width: int) -> torch.Tensor:
        """Read once for all the blocks of rows that need it."""
        held = self._held  # one look: threads read blocks side by side
        if held[0] != f"{name} {expert}":
            A, r = torch.empty(self.lora.r, width), self.lora.r
            self.adapters.rows(name, expert * r, (expert + 1) * r, A)
            self._held = held = f"{name} {expert}", A
        return held[1]


class PeftWeights:
    """The adapters under PEFT's names. Where each expert has an A, B is block-diagonal: PEFT knows one A alone."""

    def __init__(self, adapters: CheckpointReader, model: ModelConfig, lora: LoraConfig) -> None:
        self.adapters, self.files = adapters, adapters.files
        self.r, self._F = lora.r, model.ffn_config.ffn_hidden_size
        own = adapter_shapes(model, lora)
        self._own: dict[str, str] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name in adapted_shapes(model, lora):
            place, peft = adapter_name(name), _peft_name(name, lora)
            rank = own[f"{place}.lora_A"][0]
            for matrix in ("lora_A", "lora_B"):
                shape = own[f"{place}.{matrix}"]
                self._own[f"{peft}.{matrix}.weight"] = f"{place}.{matrix}"
                self.shapes[f"{peft}.{matrix}.weight"] = shape if matrix == "lora_A" else (shape[0], rank)

    def pieces(self, name: str, dtype: torch.dtype) -> None:
        return None

    def rows(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        own = self._own[name]
        if self.shapes[name] == self.adapters.shapes[own]:
            self.adapters.rows(own, start, stop, out)
            return
        B = torch.empty(stop - start, self.r)
        self.adapters.rows(own, start, stop, B)
        expert = torch.arange(start, stop) // self._F
        columns = expert.unsqueeze(1) * self.r + torch.arange(self.r)
        out.zero_().scatter_(1, columns, B.to(out.dtype))


def _peft_name(name: str, lora: LoraConfig) -> str:
    """PEFT wraps a module once for each parameter of it, the first innermost."""
    module, _, last = name.rpartition(".")
    if last == "weight":
        return f"base_model.model.{module}"
    wrapped = [part for part in ("w1", "v1", "w2") if part in lora.targets]
    return f"base_model.model.{module}{'.base_layer' * (len(wrapped) - 1 - wrapped.index(last))}"


def peft_config(model: ModelConfig, lora: LoraConfig, base: str | None) -> dict[str, Any]:
    """adapter_config.json, which peft 0.18 and newer read."""
    names = {"Wqkv": "Wqkv", "out_proj": "out_proj", "layer": "router.layer"}
    experts = [f"experts.mlp.{part}" for part in ("w1", "v1", "w2") if part in lora.targets]
    linear = [names[part] for part in lora.targets if part in names]
    # With an A an expert, theirs is the common rank: patterns are for modules, of parameters PEFT warns falsely.
    wide = model.ffn_config.moe_num_experts if lora.per_expert and experts else 1
    narrow = linear if wide > 1 else []
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": wide * lora.r,
        "lora_alpha": wide * lora.alpha,
        # Of training alone, and refused by PEFT beside target_parameters.
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": linear,
        "target_parameters": experts or None,
        "rank_pattern": dict.fromkeys(narrow, lora.r),
        "alpha_pattern": dict.fromkeys(narrow, lora.alpha),
        "inference_mode": True,
    }


def export_peft(checkpoint: Path, output: Path, precision: Precision = "fp32") -> None:
    """Writes the adapters as a folder that stock PEFT loads onto the base in stock transformers.

    Says beforehand how large it will be. Raises ConfigError, and leaves nothing, when the checkpoint holds none or is
    not whole, or the output is not empty or cannot be written.
    """
    reader, beside = CheckpointReader(checkpoint), checkpoint.parent / "config.yaml"
    if not beside.is_file():
        raise ConfigError(f"{beside} is not there, but it says what the adapters are: copy it there")
    config = load_saved_config(beside)
    if config.lora is None:
        raise ConfigError(f"{checkpoint} is a whole model without adapters: leave --adapter peft out")
    reader.check(config.model, str(beside), config.lora)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"the output {output} is there and not empty: name a new folder, or empty it")
    source = PeftWeights(reader, config.model, config.lora)
    size = sum(n_bytes(shape, precision) for shape in source.shapes.values())
    block = ", block-diagonal over the experts" if config.lora.per_expert else ""
    print(f"the PEFT adapter will have {size:,} bytes in {precision}{block}", flush=True)
    part = output.absolute().with_name(f".{output.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        if (free := shutil.disk_usage(part).free) < size:
            raise ConfigError(f"the adapter needs {size:,} bytes, but {output.absolute().parent} has {free:,} free")
        base = config.model.pretrained_model_name_or_path
        write_json(part / "adapter_config.json", peft_config(config.model, config.lora, base))
        (part / "README.md").write_text(_readme(config, base), encoding="utf-8")
        _check_finite(reader, adapter_shapes(config.model, config.lora))
        with tqdm(total=size, unit="B", unit_scale=True, desc="adapter", disable=None) as progress:
            write_file(source, part / PEFT_WEIGHTS, source.shapes, precision, progress)
        part.replace(output)
    except OSError as error:
        raise ConfigError(f"the output {output} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_finite(reader: CheckpointReader, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ConfigError when adapters in the checkpoint are not finite."""
    names = []
    for name, shape in shapes.items():
        for start, stop in row_blocks(shape, 4):
            rows = torch.empty(stop - start, *shape[1:])
            reader.rows(name, start, stop, rows)
            if not is_finite(rows):
                names.append(name)
                break
    if names:
        raise ConfigError(of_checkpoint(reader.checkpoint, names))


def _readme(config: TrainConfig, base: str | None) -> str:
    assert config.lora is not None
    merged = bool({"w1", "v1", "w2"} & set(config.lora.targets))
    how = """
The experts' weights are read past the module that holds them, where PEFT cannot add to them: without
`merge_and_unload()` the model raises `AttributeError: 'ParamWrapper' object has no attribute 'w1'`.
"""
    begun = base or config.load_path
    return f"""{front_matter("peft", base)}

# Adapters of {config.run_name or "a run"}

Adapters (LoRA) of a DBRX that began with {f"the weights in `{begun}`" if begun else "fresh weights"}, trained with
Dropless.

{lora_table(config.lora)}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({base or "the base"!r})
model = PeftModel.from_pretrained(model, "this folder"){".merge_and_unload()" if merged else ""}
```
{how if merged else ""}"""
