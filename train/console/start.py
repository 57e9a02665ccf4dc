"""The part of the start summary that is shown before data is read: the config, the number of ranks and the machine.

This module imports only modules that load quickly, so that the lines are shown immediately.
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any

from data.base.errors import yaml_of
from data.base.sizes import format_bytes
from data.config.sections import is_within, leaves
from train.config.ranks import train_microbatch_rows
from train.config.redaction import differing
from train.config.schema import TrainConfig
from train.console.facts import fact, fact_of
from train.hardware.device import Device
from train.models.config import PRESETS
from train.models.precision import on_device
from train.planning.machine import RankMemory
from train.planning.summary import parameters_line

_SHOWN_ELSEWHERE = (
    *("run_name", "model.preset", "max_seq_len", "precision", "max_duration", "save_folder", "loggers"),
    *("global_train_batch_size", "device_train_microbatch_size", "train_loader.stages"),
    *("train_loader.dataset.max_seq_len", "eval_loader.dataset.max_seq_len"),
    *("progress_bar", "log_to_console", "console_log_interval"),
)
"""Keys and sections that are described by other lines of the summary, or that only affect the console."""
_OF_WEIGHTS = (
    *("d_model", "n_heads", "n_layers", "max_seq_len", "vocab_size", "initializer_range"),
    *("attn_config.clip_qkv", "attn_config.kv_n_heads", "attn_config.rope_theta"),
    *("ffn_config.ffn_hidden_size", "ffn_config.moe_num_experts", "ffn_config.moe_top_k"),
)
"""Keys of the model whose values come from config.json if pretrained weights are used."""
_LONGEST_VALUE, _MOST_LINES = 60, 15
_NOTHING = object()


def model_lines(config: TrainConfig) -> Iterator[str]:
    model, ffn = config.model, config.model.ffn_config
    name = model.pretrained_model_name_or_path or (f"DBRX {model.preset}" if model.preset else "DBRX")
    experts = f"{ffn.moe_num_experts} experts, {ffn.moe_top_k} active per token"
    yield fact("model", f"{name}: {model.n_layers} layers of width {model.d_model:,}, {experts}")
    yield fact_of(parameters_line(model, config.lora))


def machine_lines(config: TrainConfig, world_size: int, device: Device, memory: RankMemory) -> Iterator[str]:
    """Yield lines for ranks, precision, batch and memory."""
    nodes = max(world_size // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    where = f"{world_size} on {nodes} node{'s' if nodes > 1 else ''}" if world_size > 1 else "1"
    yield fact("ranks", f"{where}, {_device_name(device)}; {_parallelism(config, world_size)}")
    precision = on_device(config.precision, gpu=device == "gpu")
    why = "" if precision == config.precision else f" ({config.precision} becomes {precision} on CPU)"
    yield fact("precision", f"{precision}{why}")
    rows, microbatch = config.global_train_batch_size // world_size, train_microbatch_rows(config, world_size)
    each = f"{rows} per rank, in microbatches of {microbatch}" if world_size > 1 else f"in microbatches of {microbatch}"
    yield fact("batch", f"{config.global_train_batch_size:,} rows of {config.max_seq_len:,} tokens: {each}")
    need, at_least = format_bytes(memory.predicted), format_bytes(memory.at_least)
    have = format_bytes(memory.available, down=True)
    yield fact("memory", f"{need} predicted per rank (at least {at_least}), {have} available")


def _device_name(device: Device) -> str:
    if device == "cpu":
        return "CPU"
    import torch

    return torch.cuda.get_device_name(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _parallelism(config: TrainConfig, world_size: int) -> str:
    fsdp = config.fsdp_config
    if fsdp is None:
        return "DDP: every rank has the whole model" if world_size > 1 else "not sharded"
    replicas = fsdp.data_parallel_replicate_degree or 1
    shards = world_size // replicas
    parts = [f"FSDP: sharded over {shards} rank{'s' if shards > 1 else ''}"]
    if replicas > 1:
        parts = [f"HSDP: {replicas} replicas, each sharded over {shards} ranks"]
    if fsdp.expert_parallel_degree > 1:
        parts.append(f"experts sharded over {fsdp.expert_parallel_degree} ranks")
    return ", ".join(parts)


def config_lines(config: TrainConfig) -> Iterator[str]:
    """Yield the values that differ from the defaults and are not shown elsewhere, one line per section."""
    sections: dict[str, list[str]] = {}
    for key, value in _chosen(config).items():
        if not is_within(key, _SHOWN_ELSEWHERE):
            section, dot, name = key.partition(".")
            sections.setdefault(section if dot else "run", []).append(f"{name or section}={_short(value)}")
    lines = [
        line for section, values in sections.items() for line in fact(f"  {section}", " ".join(values)).split("\n")
    ]
    if not lines:
        return
    whole = " (config.yaml in the save folder contains all values)" if config.save_folder is not None else ""
    yield fact("config", f"values that differ from the defaults{whole}:")
    yield from lines[:_MOST_LINES]
    if len(lines) > _MOST_LINES:
        yield fact("", f"... and {len(lines) - _MOST_LINES} more lines")


def _chosen(config: TrainConfig) -> dict[str, Any]:
    """Return the values that differ from the defaults, except those set by the preset or the pretrained weights."""
    model = config.model
    given: dict[str, Any] = dict(leaves(PRESETS.get(model.preset or "", {})))
    if model.pretrained_model_name_or_path is not None:
        given |= {key: value for key, value in leaves(dataclasses.asdict(model)) if key in _OF_WEIGHTS}
    return {
        key: value
        for key, value in differing(config).items()
        if not key.startswith("model.") or given.get(key.removeprefix("model."), _NOTHING) != value
    }


def _short(value: Any) -> str:
    text = yaml_of(value)
    if len(text) > _LONGEST_VALUE and isinstance(value, dict):
        return f"{{{', '.join(map(str, value))}: ...}}"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
