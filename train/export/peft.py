"""Export a LoRA checkpoint as a folder that PEFT loads.

The adapters are written a few rows at a time, so a block-diagonal matrix is never in memory as a whole.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data.base.console import logger
from data.base.errors import ConfigError, cannot_be
from data.base.sizes import format_bytes, progress_bar
from data.secrets.redaction import redacted, without_secrets
from train.checkpoint.reader import CheckpointReader
from train.config.schema import TrainConfig
from train.export.model_card import front_matter, lora_table
from train.export.writer import write_file
from train.hf.finite import is_finite, of_checkpoint
from train.hf.repository import write_json
from train.hf.tensors import n_bytes, row_blocks
from train.models.config import LoraConfig, ModelConfig
from train.models.precision import FORMATS, Precision
from train.models.shapes import adapted_experts, adapted_shapes, adapter_name, adapter_shapes
from train.weights.merged import open_checkpoint_and_config

PEFT_WEIGHTS = "adapter_model.safetensors"


def export_peft(checkpoint: Path, output: Path, precision: Precision = "fp32") -> None:
    """Export the adapters as a folder that unmodified PEFT can load into the base model of unmodified transformers.

    Logs the size of the adapters first. Raises ConfigError, without creating the output, if the checkpoint has no
    adapters or is incomplete, or if the output is not empty or cannot be written.
    """
    beside = checkpoint.parent / "config.yaml"
    if not beside.is_file():
        raise ConfigError(
            f"{beside} does not exist, but the export reads the settings of the adapters from it: copy the file that "
            "the run wrote next to its checkpoints"
        )
    reader, config = open_checkpoint_and_config(checkpoint)
    if config.lora is None:
        raise ConfigError(f"{checkpoint} contains a whole model without adapters: remove --adapter peft")
    reader.check(config.model, str(beside), config.lora)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(
            f"the output {output} exists and is not an empty folder: specify a new folder, or empty this one"
        )
    source = PeftWeights(reader, config.model, config.lora)
    size = sum(n_bytes(shape, precision) for shape in source.shapes.values())
    block = " (block-diagonal over the experts)" if config.lora.per_expert else ""
    logger.info(f"the PEFT adapter{block} will take {size:,} bytes in {precision}")
    part = output.absolute().with_name(f".{output.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        if (free := shutil.disk_usage(part).free) < size:
            has = f"{output.absolute().parent} has {format_bytes(free, down=True)} free"
            raise ConfigError(f"the adapter needs {format_bytes(size)}, but {has}")
        base = config.model.pretrained_model_name_or_path
        write_json(part / "adapter_config.json", peft_config(config.model, config.lora, base))
        (part / "README.md").write_text(redacted(_readme(config, base)), encoding="utf-8")
        _check_finite(reader, adapter_shapes(config.model, config.lora))
        with progress_bar("adapter", size, disable=None) as progress:
            write_file(source, part / PEFT_WEIGHTS, source.shapes, precision, progress)
        part.replace(output)
    except OSError as error:
        raise ConfigError(cannot_be("written", f"the output {output}", error)) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _check_finite(reader: CheckpointReader, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ConfigError if an adapter in the checkpoint contains NaN or infinity."""
    names = []
    for name, shape in shapes.items():
        for start, stop in row_blocks(shape, FORMATS["fp32"].n_bytes):
            rows = torch.empty(stop - start, *shape[1:])
            reader.rows(name, start, stop, rows)
            if not is_finite(rows):
                names.append(name)
                break
    if names:
        raise ConfigError(of_checkpoint(reader.checkpoint, names))


def peft_config(model: ModelConfig, lora: LoraConfig, base: str | None) -> dict[str, Any]:
    """Return the content of adapter_config.json for peft 0.18 and newer."""
    names = {"Wqkv": "Wqkv", "out_proj": "out_proj", "layer": "router.layer"}
    experts = [f"experts.mlp.{part}" for part in adapted_experts(lora)]
    linear = [names[part] for part in lora.targets if part in names]
    # If each expert has its own A, the default `r` is the combined rank of all experts, and patterns set the rank of
    # the other modules. PEFT supports patterns for modules, but logs incorrect warnings about patterns for parameters.
    wide = model.ffn_config.moe_num_experts if lora.per_expert and experts else 1
    narrow = linear if wide > 1 else []
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": without_secrets(base).text if base is not None else None,
        "r": wide * lora.r,
        "lora_alpha": wide * lora.alpha,
        # Dropout is only used in training, and PEFT refuses it together with target_parameters.
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": linear,
        "target_parameters": experts or None,
        "rank_pattern": dict.fromkeys(narrow, lora.r),
        "alpha_pattern": dict.fromkeys(narrow, lora.alpha),
        "inference_mode": True,
    }


def _readme(config: TrainConfig, base: str | None) -> str:
    assert config.lora is not None
    merged = bool(adapted_experts(config.lora))
    how = """
Call `merge_and_unload()`: transformers reads the experts' weights directly from their module, without the wrapper in
which PEFT adds the adapters. Without merging, the model raises `AttributeError: 'ParamWrapper' object has no attribute
'w1'`.
"""
    start = base or config.load_path
    frozen = f"`{start}`" if start else "a randomly initialized model"
    return f"""{front_matter("peft", base)}

# LoRA adapters of {config.run_name or "a run"}

LoRA adapters for a DBRX mixture-of-experts model, trained with Dropless. The frozen base is {frozen}.

{lora_table(config.lora)}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({base or "path/to/the/base"!r})
model = PeftModel.from_pretrained(model, "path/to/this/folder"){".merge_and_unload()" if merged else ""}
```
{how if merged else ""}"""


class PeftWeights:
    """The adapters under PEFT's names. If each expert has its own A, B becomes block-diagonal, because PEFT has only
    one A for all experts."""

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
    """Return the parameter's name in PEFT. PEFT wraps a module once for each adapted parameter, beginning with the
    first."""
    module, _, last = name.rpartition(".")
    if last == "weight":
        return f"base_model.model.{module}"
    wrapped = adapted_experts(lora)
    return f"base_model.model.{module}{'.base_layer' * (len(wrapped) - 1 - wrapped.index(last))}"
