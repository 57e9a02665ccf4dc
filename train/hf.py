"""Our weights as a stock Hugging Face DBRX folder, one tensor in memory at a time.

Parameter names and shapes are Hugging Face's already (see plan.parameter_shapes), so the export copies bytes; what it
adds is config.json, the index, and the tokenizer's files, which the run left beside its checkpoints.
"""

import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from tqdm import tqdm

from data.errors import ConfigError
from train.checkpoint import CheckpointReader, checkpoints
from train.models.config import ModelConfig
from train.plan import parameter_shapes
from train.reader import load_config

Precision = Literal["fp32", "bf16"]

MAX_SHARD_BYTES = 5_000_000_000
_DTYPES = {"fp32": (torch.float32, "F32", "float32"), "bf16": (torch.bfloat16, "BF16", "bfloat16")}
# Of models without clip_qkv: transformers clamps in any case and cannot clamp to nothing. The largest number of fp16.
_NO_CLIP = 65504.0


def export(
    checkpoint: Path, output: Path, precision: Precision = "fp32", max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes the sharded checkpoint (or the newest in a save folder) as a model that transformers loads from `output`.

    Raises ConfigError, and leaves no output, when the checkpoint or what belongs beside it is not there or not whole,
    when its tensors are not those of a stock DBRX of its config, or when the output cannot be written or is not empty.
    """
    output = output.absolute()
    _check_output(output)
    checkpoint = find_checkpoint(checkpoint)
    model, tokenizer, generation = _read_beside(checkpoint)
    reader = CheckpointReader(checkpoint)
    reader.check(model, str(checkpoint.parent / "config.yaml"))
    part = output.with_name(f".{output.name}.part-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        _check_space(part, model, precision)
        _write_weights(reader, part, model, precision, max_shard_bytes)
        _write_json(part / "config.json", config_json(model, generation, precision))
        shutil.copytree(tokenizer, part, dirs_exist_ok=True)
        part.rename(output)
    except OSError as error:
        raise ConfigError(f"the output {output} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: itself, what it links to, or the newest complete one in a save folder."""
    real = path.resolve()
    if (real / ".metadata").is_file():
        return real
    inside = [found for found in checkpoints(real) if found.is_dir()]
    if inside:
        return inside[-1]
    raise ConfigError(
        f"{path} is not a sharded checkpoint (a folder such as ep0-ba100 with .metadata in it), nor a folder of them, "
        f"but {_describe(path)}"
    )


def _describe(path: Path) -> str:
    if not path.exists():
        return f"a link to {path.readlink()}, which is not there" if path.is_symlink() else "nothing is there"
    if path.is_file():
        return "a file; a full checkpoint is not exported: train with fsdp_config.state_dict_type: sharded"
    names = sorted(entry.name for entry in path.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"a folder that holds {', '.join(names[:5])}{more}" if names else "an empty folder"


def _read_beside(checkpoint: Path) -> tuple[ModelConfig, Path, dict[str, Any]]:
    """What the run left in its save folder: the model's shape, the tokenizer's folder, and its generation config."""
    config, tokenizer = checkpoint.parent / "config.yaml", checkpoint.parent / "tokenizer"
    generation = tokenizer / "generation_config.json"
    for file, why in ((config, "the model's shape"), (generation, "the tokenizer")):
        if not file.is_file():
            raise ConfigError(
                f"{file} is not there, but the export takes {why} from it: copy what the run left beside its "
                "checkpoints"
            )
    return load_config(str(config)).model, tokenizer, json.loads(generation.read_text(encoding="utf-8"))


def config_json(model: ModelConfig, generation: Mapping[str, Any], precision: Precision) -> dict[str, Any]:
    """config.json as transformers 4.53 to 5.23 read it alike: 4.x keys and, for 5.x, rope_parameters beside them."""
    attn, ffn = model.attn_config, model.ffn_config
    norm = ffn.moe_normalize_expert_weights
    return {
        "architectures": ["DbrxForCausalLM"],
        "model_type": "dbrx",
        "d_model": model.d_model,
        "n_heads": model.n_heads,
        "n_layers": model.n_layers,
        "max_seq_len": model.max_seq_len,
        "vocab_size": model.vocab_size,
        "resid_pdrop": float(model.resid_pdrop),
        "emb_pdrop": float(model.emb_pdrop),
        "attn_config": {
            "attn_pdrop": float(attn.attn_pdrop),
            "clip_qkv": float(attn.clip_qkv) if attn.clip_qkv is not None else _NO_CLIP,
            "kv_n_heads": attn.kv_n_heads,
            "rope_theta": float(attn.rope_theta),
        },
        "ffn_config": {
            "ffn_act_fn": {"name": "silu"},
            "ffn_hidden_size": ffn.ffn_hidden_size,
            "moe_num_experts": ffn.moe_num_experts,
            "moe_top_k": ffn.moe_top_k,
            # transformers multiplies by noise also where eps is 0, but not where it is null.
            "moe_jitter_eps": float(ffn.moe_jitter_eps) or None,
            "moe_loss_weight": float(ffn.moe_loss_weight),
            "moe_normalize_expert_weights": None if norm is None else float(norm),
        },
        "rope_parameters": {"rope_type": "default", "rope_theta": float(attn.rope_theta)},
        "initializer_range": float(model.initializer_range),
        "output_router_logits": False,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": generation["bos_token_id"],
        "eos_token_id": generation["eos_token_id"],
        "torch_dtype": _DTYPES[precision][2],
        # Without a version from before its pattern check, 4.57 warns falsely of the GPT-4 tokenizer.
        "transformers_version": "4.53.0",
    }


def _check_output(output: Path) -> None:
    if output.is_dir() and any(output.iterdir()):
        raise ConfigError(f"the output folder {output} is not empty: name a new one, or empty it")
    if output.exists() and not output.is_dir():
        raise ConfigError(f"the output {output} is a file, but a folder is written: name another")


def _check_space(folder: Path, model: ModelConfig, precision: Precision) -> None:
    needed = sum(_n_bytes(shape, precision) for shape in parameter_shapes(model).values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(f"the export needs {needed:,} bytes, but {folder.parent} has {free:,} free")


def _n_bytes(shape: tuple[int, ...], precision: Precision) -> int:
    return torch.Size(shape).numel() * _DTYPES[precision][0].itemsize


def _write_weights(
    reader: CheckpointReader, folder: Path, model: ModelConfig, precision: Precision, max_bytes: int
) -> None:
    shapes = parameter_shapes(model)
    shards = list(_shards(shapes, precision, max_bytes))
    total = sum(_n_bytes(shape, precision) for shape in shapes.values())
    weight_map = {}
    with tqdm(total=total, unit="B", unit_scale=True, desc="export", disable=None) as progress:
        for number, names in enumerate(shards, start=1):
            file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            weight_map |= dict.fromkeys(names, file)
            with (folder / file).open("wb") as stream:
                _write_header(stream, {name: shapes[name] for name in names}, precision)
                for name in names:
                    tensor = reader.tensor(name).to(_DTYPES[precision][0]).contiguous()
                    progress.update(stream.write(tensor.view(torch.uint8).numpy().data))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _shards(shapes: Mapping[str, tuple[int, ...]], precision: Precision, max_bytes: int) -> Iterator[list[str]]:
    """The names that go into each file, in order; a tensor larger than a file may be has one of its own."""
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        n_bytes = _n_bytes(shape, precision)
        if names and size + n_bytes > max_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += n_bytes
    yield names


def _write_header(stream: BinaryIO, shapes: Mapping[str, tuple[int, ...]], precision: Precision) -> None:
    """safetensors' header: its length in 8 bytes, then JSON that says where each tensor's bytes will follow."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + _n_bytes(shape, precision)
        header[name] = {"dtype": _DTYPES[precision][1], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)


def _write_json(path: Path, contents: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
