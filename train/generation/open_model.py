"""Opens a model for generation: an exported folder (opened with Hugging Face's transformers), or a checkpoint (opened
with our own model)."""

import dataclasses
import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.base.errors import ConfigError
from data.base.sizes import format_bytes
from data.config.tokenizer import TokenizerConfig
from data.hub.repository_files import check_json_files, refuse_code_beside
from data.tokenization.build import build_tokenizer
from data.tokenization.tokenizer import Tokenizer
from train.checkpoint.places import is_save_folder, resolve_folder
from train.export.export import find_checkpoint, open_run
from train.generation.decoders import DbrxDecoder, Decoder, TransformersDecoder
from train.hardware.device import Device
from train.hardware.kernels import Wording, resolve_kernels
from train.hardware.memory import available_memory
from train.hf.finite import is_finite, of_checkpoint
from train.hf.tensors import n_bytes
from train.models.config import ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.precision import FORMATS, Precision
from train.models.shapes import parameter_shapes
from train.weights.pretrained import PretrainedFolder


@dataclass(frozen=True)
class Opened:
    """A model that was opened for generation, with its tokenizer."""

    decoder: Decoder
    tokenizer: Tokenizer
    stop_token_ids: list[int]
    description: str
    """The model's folder, implementation, device and precision."""


def open_model(folder: Path, device: Device, precision: Precision | None = None) -> Opened:
    """Open the model of an exported folder, of a checkpoint, or of the newest checkpoint in a save folder.

    folder: see resolve_model. precision: by default, the result of default_precision. Raises ConfigError if the folder
    contains no model.
    """
    folder = resolve_model(folder)
    precision = precision or default_precision(device)
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{folder} is a PEFT adapter, not a complete model: use the run's checkpoint, or an export of it "
            "with --adapter merge"
        )
    if is_exported(folder):
        return _open_exported(folder, precision, device)
    return _open_checkpoint(find_checkpoint(folder), precision, device)


def default_precision(device: Device) -> Precision:
    """bf16 on a GPU. fp32 on a CPU, because bf16 is several times slower than fp32 on a CPU."""
    return "bf16" if device == "gpu" else "fp32"


def torch_device(device: Device) -> torch.device:
    return torch.device("cuda" if device == "gpu" else "cpu")


def resolve_model(folder: Path) -> Path:
    """Find the save folder or exported model in a run's folder. Raises ConfigError if the folder contains several save
    folders or exported models."""
    return resolve_folder(folder, lambda each: is_exported(each) or is_save_folder(each))


def is_exported(folder: Path) -> bool:
    """Whether the folder looks like a Hugging Face folder. check_exported checks whether the folder is complete."""
    return (folder / "config.json").is_file()


def _open_exported(folder: Path, precision: Precision, device: Device) -> Opened:
    from transformers import AutoModelForCausalLM, PretrainedConfig

    # transformers would only warn about missing tensors, and initialize them randomly.
    weights = check_exported(folder)
    model_config = weights.model
    tokenizer = _tokenizer(folder, model_config)
    stop_token_ids = _stop_token_ids(folder, tokenizer)
    _check_memory(folder, model_config, precision, device)
    # transformers before 4.56 only supports torch_dtype; later versions warn about that name.
    dtype = "dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype"
    kwargs: dict[str, Any] = {dtype: FORMATS[precision].torch_dtype, "use_safetensors": True, "local_files_only": True}
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False, **kwargs)
    check_loaded(weights, loaded)
    decoder = TransformersDecoder(loaded.to(torch_device(device)), tokenizer.pad_token_id)
    return Opened(decoder, tokenizer, stop_token_ids, _describe(folder, "transformers", precision, device))


def check_exported(folder: Path) -> PretrainedFolder:
    """Raise ConfigError if the folder does not contain a complete DBRX model in Hugging Face's format, or if
    transformers would run code from the folder.

    Reads no tensors.
    """
    check_json_files(folder)
    refuse_code_beside(folder)
    try:
        return PretrainedFolder.open(str(folder))
    except ConfigError as error:
        raise ConfigError(error.text.removeprefix("is ")) from None


def check_loaded(weights: PretrainedFolder, model: nn.Module) -> None:
    """Raise ConfigError if the weights that transformers loaded from the folder are not finite."""
    if names := _not_finite(model):
        raise ConfigError(weights.not_finite(names).text.removeprefix("is "))


def _not_finite(model: nn.Module) -> list[str]:
    return [name for name, param in model.named_parameters() if not is_finite(param.detach())]


def _open_checkpoint(checkpoint: Path, precision: Precision, device: Device) -> Opened:
    """Open a checkpoint of our model. Adapters are merged into the base weights."""
    run = open_run(checkpoint)
    model_config = _for_generation(run.config.model)
    wording = Wording(
        choice=f"{checkpoint} is opened on a GPU", bf16="use --precision bf16", loop="use the CPU with --device cpu"
    )
    resolve_kernels(model_config, torch_device(device), FORMATS[precision].torch_dtype, None, wording)
    tokenizer = _tokenizer(run.tokenizer, model_config)
    _check_memory(checkpoint, model_config, precision, device)
    with torch.device("meta"):
        model = DbrxForCausalLM(model_config).to(FORMATS[precision].torch_dtype)
    model.to_empty(device=torch_device(device))
    with torch.no_grad():
        for name, param in model.named_parameters():
            run.source.rows(name, 0, param.shape[0], param)
    if names := _not_finite(model):
        raise ConfigError(of_checkpoint(checkpoint, names))
    decoder, description = DbrxDecoder(model.eval()), _describe(checkpoint, "Dropless", precision, device)
    return Opened(decoder, tokenizer, _stop_token_ids(run.tokenizer, tokenizer), description)


def _for_generation(model: ModelConfig) -> ModelConfig:
    """The model config for generation: without recomputation, and with moe_impl and attn_impl set to auto, because the
    run's values were chosen for the device and precision of the run."""
    return dataclasses.replace(
        model,
        attn_config=dataclasses.replace(model.attn_config, attn_impl="auto"),
        ffn_config=dataclasses.replace(model.ffn_config, moe_impl="auto", moe_recompute=False),
    )


def _tokenizer(folder: Path, model: ModelConfig) -> Tokenizer:
    if not any(folder.glob("tokenizer*")):
        raise ConfigError(
            f"{folder} has no tokenizer (tokenizer.json, tokenizer_config.json): copy the files of the model's "
            "tokenizer into this folder"
        )
    # As in transformers, chat templates receive the current date.
    tokenizer = build_tokenizer(TokenizerConfig(name=str(folder.absolute()), chat_date=f"{date.today()}"))
    if tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} tokens, but the model's vocab_size is "
            f"{model.vocab_size}: use the tokenizer that the model was trained with"
        )
    return tokenizer


def _stop_token_ids(folder: Path, tokenizer: Tokenizer) -> list[int]:
    """The ids of the stop tokens in generation_config.json or, if this file does not exist, those of the tokenizer."""
    file = folder / "generation_config.json"
    try:
        stop = json.loads(file.read_text(encoding="utf-8"))["eos_token_id"]
        ids = stop if isinstance(stop, list) else [stop]
        return [int(token_id) for token_id in ids]
    except FileNotFoundError:
        return tokenizer.stop_token_ids
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: eos_token_id must be an id or a list of ids ({error!r})") from None


def _check_memory(path: Path, model: ModelConfig, precision: Precision, device: Device) -> None:
    need = sum(n_bytes(shape, precision) for shape in parameter_shapes(model).values())
    have = available_memory(device)
    if need > have:
        where = "GPU" if device == "gpu" else "machine"
        has = f"this {where} has {format_bytes(have, down=True)}"
        raise ConfigError(
            f"{path} needs {format_bytes(need)} in {precision}, but {has}: use a larger {where}, or serve the "
            "exported folder on several GPUs"
        )


def _describe(path: Path, by: str, precision: Precision, device: Device) -> str:
    return f"{path} loaded by {by} in {precision} on {torch_device(device)}"
