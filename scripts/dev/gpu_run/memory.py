"""Compares the peak allocated memory of a training step with the prediction of the planner."""

import contextlib
import gc
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from data.config.loader import DataLoaderConfig, DatasetConfig
from data.config.tokenizer import TokenizerConfig
from scripts.bench.watch import Watch
from train.config.optimizer import OptimizerConfig, SchedulerConfig
from train.config.schema import FSDPConfig, TrainConfig
from train.distributed.build_model import build_model
from train.models.config import AttnConfig, FFNConfig, ModelConfig
from train.planning.memory import memory_per_rank

Policy = Literal["none", "selective", "block"]
POLICIES: tuple[Policy, ...] = ("none", "selective", "block")
_GB = 1e9


def config_of(policy: Policy, *, tiny: bool) -> TrainConfig:
    """Return a config with which the weights, gradients and optimizer state occupy about 18 GB on one rank. The data of
    the config is never read."""
    sizes: dict[str, Any] = {"d_model": 2048, "n_heads": 16, "n_layers": 2, "vocab_size": 100352}
    ffn, attn, row = FFNConfig(ffn_hidden_size=3584), AttnConfig(), 4096
    if tiny:
        sizes, row = {"d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 512}, 64
        ffn, attn = FFNConfig(ffn_hidden_size=32), AttnConfig(kv_n_heads=2)
    loader = DataLoaderConfig(name="text", dataset=DatasetConfig(local="unused", max_seq_len=row))
    return TrainConfig(
        max_seq_len=row,
        model=ModelConfig(max_seq_len=row, attn_config=attn, ffn_config=ffn, **sizes),
        tokenizer=TokenizerConfig(name="unused"),
        train_loader=loader,
        optimizer=OptimizerConfig(name="adamw", lr=1e-4),
        scheduler=SchedulerConfig(name="constant_with_warmup"),
        max_duration="2ba",
        global_train_batch_size=1,
        precision="amp_bf16",
        fsdp_config=FSDPConfig(activation_checkpointing=policy),
    )


def against_plan(device: torch.device, *, tiny: bool) -> tuple[list[dict[str, str]], dict[str, Any], list[str]]:
    """Return a row for each policy, the planned and measured values in bytes, and notes about missing values."""
    gpu, notes, figures = device.type == "cuda", [], {}
    dist.init_process_group("nccl" if gpu else "gloo", store=HashStore(), rank=0, world_size=1)
    try:
        for policy in POLICIES:
            config = config_of(policy, tiny=tiny)
            planned = {"lower bound": memory_per_rank(config, 1, gpu=gpu).total, **_predicted(config, gpu=gpu)}
            figures[policy] = planned | measured(config, device)
    finally:
        dist.destroy_process_group()
    if "predicted" not in figures[POLICIES[0]]:
        notes.append("train/planning/peak.py is missing: only the lower bound is compared")
    return [_row(policy, of) for policy, of in figures.items()], figures, notes


def _predicted(config: TrainConfig, *, gpu: bool) -> dict[str, float]:
    """Return the planned peak without the reserve for memory that the allocator does not count."""
    try:
        from train.planning.peak import memory_parts  # pyright: ignore[reportMissingImports]
    except ImportError:
        return {}
    parts = memory_parts(config, 1, gpu=gpu)
    return {"predicted": parts.total - parts.reserve, "reserve": parts.reserve}


def measured(config: TrainConfig, device: torch.device) -> dict[str, float]:
    """Measure the second step, because the optimizer's moments exist only after the first step. Returns bytes: the
    allocated peak and, on a GPU, the memory reserved by the allocator and the memory in use outside of the allocator
    (CUDA context, NCCL)."""
    gpu = device.type == "cuda"
    precision = config.precision if gpu else "fp32"
    # On a GPU, the allocator itself counts the memory.
    with contextlib.nullcontext(Watch()) if gpu else Watch() as watch:
        model = build_model(config.model, config.fsdp_config, precision=precision, device=device, seed=config.seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        _step(model, optimizer, config, device)
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        watch.peak = watch.now
        _step(model, optimizer, config, device)
    found = {"allocated": float(watch.peak)}
    if gpu:
        free, total = torch.cuda.mem_get_info()
        reserved = torch.cuda.memory_reserved()
        found = {"allocated": float(torch.cuda.max_memory_allocated()), "reserved": float(reserved)}
        found["beyond the allocator"] = float(total - free - reserved)
    del model, optimizer
    gc.collect()
    if gpu:
        torch.cuda.empty_cache()
    return found


def _step(model: Any, optimizer: torch.optim.Optimizer, config: TrainConfig, device: torch.device) -> None:
    ids = torch.randint(config.model.vocab_size, (1, config.max_seq_len), device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        loss = model(ids, ids.roll(-1, 1)).losses_BS.mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _row(policy: str, figures: dict[str, float]) -> dict[str, str]:
    def shown(name: str) -> str:
        return f"{figures[name] / _GB:.4g}" if name in figures else "-"

    columns = {"lower bound": "lower bound", "predicted peak": "predicted", "measured peak": "allocated"}
    columns |= {"reserved": "reserved", "beyond the allocator": "beyond the allocator"}
    row = {"activation_checkpointing": policy} | {title: shown(name) for title, name in columns.items()}
    for planned in ("lower bound", "predicted"):
        there = planned in figures
        row[f"measured / {planned}"] = f"{figures['allocated'] / figures[planned]:.3f}" if there else "-"
    return row
