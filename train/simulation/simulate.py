"""Builds a rank's model without data, and simulates two steps. The second step is reported, because the optimizer's
states exist only after the first step."""

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from data.base.errors import ConfigError
from train.composer_model import Batch, DbrxForComposer
from train.config.ranks import check_world_size, train_microbatch_rows
from train.config.schema import TrainConfig
from train.distributed.build_model import meta_model
from train.distributed.clipping import clip_gradients, squared_norms, total_norm
from train.models.attention.attention import gradient_bound
from train.models.config import ModelConfig
from train.models.device import simulating
from train.models.experts.grouped_mm import why_not_grouped_mm
from train.models.precision import computed, on_device
from train.optim.optimizers import build_optimizer
from train.simulation.collectives import Traffic
from train.simulation.fake_ranks import fake_ranks
from train.simulation.operations import SimulatedOperations
from train.simulation.storages import Phase, Storages, counting_resizes


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """The memory, traffic and FLOPs of rank 0 in a step."""

    ranks: int
    moe_impl: str
    """The implementation of the experts."""
    phases: tuple[Phase, ...]
    """`build`, then the phases of the second step."""
    traffic: Counter[Traffic]
    """Bytes that the rank sends in the second step."""
    flops: int
    """FLOPs of the rank's GEMMs and attention in the second step, including recomputation."""
    tokens: int
    """Number of tokens of the rank in a step."""

    @property
    def peak(self) -> Phase:
        """The phase with the highest memory use."""
        return max(self.phases, key=lambda phase: phase.peak)


def simulate(config: TrainConfig, ranks: int, *, gpu: bool = True) -> Simulation:
    """Simulate a training step of rank 0 out of `ranks` ranks, with full rows and even routing. gpu: whether the run
    computes on GPUs.

    Raises ConfigError for configs that cannot be simulated.
    """
    check(config, ranks)
    precision = on_device(config.precision, gpu=gpu)
    model_config = _kernels(config.model, precision, gpu=gpu)
    storages = Storages()
    operations = SimulatedOperations(storages)
    with fake_ranks(ranks), simulating("cuda" if gpu else "cpu"):
        model = meta_model(
            model_config, config.fsdp_config, precision=precision, device=torch.device("cpu"), lora=config.lora
        )
        _run_probes(config)
        with FakeTensorMode(allow_non_fake_inputs=True), operations, counting_resizes(storages, "gathered weights"):
            with storages.phase("build", "weights"):
                model.to_empty(device="cpu")
            # DTensor creates unsharded tensors to derive shapes. These tensors were counted, but they need no memory in
            # a real run.
            storages.phases[0] = storages.phases[0]._replace(peak=storages.alive, parts={"weights": storages.alive})
            optimizer = build_optimizer(config.optimizer, model)
            bridge = DbrxForComposer(config.model, model)
            for _ in range(2):
                del storages.phases[1:]
                operations.traffic.clear()
                operations.flops = 0
                _step(config, ranks, bridge, optimizer, storages, bf16=computed(precision) == "bf16")
    return Simulation(
        ranks=ranks,
        moe_impl=model_config.ffn_config.moe_impl,
        phases=tuple(storages.phases),
        traffic=operations.traffic,
        flops=operations.flops,
        tokens=config.global_train_batch_size // ranks * config.max_seq_len,
    )


def check(config: TrainConfig, ranks: int) -> None:
    """Raise ConfigError for a config that cannot be simulated on this number of ranks."""
    check_world_size(config, ranks)
    if config.fsdp_config is None and ranks > 1:
        raise ConfigError(f"is null, but without FSDP only 1 rank can be simulated, not {ranks}", key="fsdp_config")
    if config.fsdp_config is not None and config.fsdp_config.activation_cpu_offload:
        raise ConfigError("is true, but host memory is not simulated", key="fsdp_config.activation_cpu_offload")


def _kernels(model: ModelConfig, precision: str, *, gpu: bool) -> ModelConfig:
    """The model config with kernels that support the tensors of a simulation, and that allocate the same memory as the
    kernels on a GPU."""
    if not gpu:
        return model
    ffn, attn = model.ffn_config, model.attn_config
    moe_impl = ffn.moe_impl
    dtype = torch.bfloat16 if computed(precision) == "bf16" else torch.float32
    if moe_impl != "torch":
        moe_impl = "torch" if why_not_grouped_mm(torch.device("cpu"), dtype) else "grouped_mm"
    return replace(model, ffn_config=replace(ffn, moe_impl=moe_impl), attn_config=replace(attn, attn_impl="sdpa"))


def _run_probes(config: TrainConfig) -> None:
    """Call the functions that test torch with real data. These functions cache their results, so that the tests do not
    run within the simulation, where they would fail."""
    if config.model.attn_config.clip_qkv is not None:
        for dtype in (torch.float32, torch.bfloat16):
            gradient_bound(config.model.attn_config.clip_qkv, dtype)


def _step(
    config: TrainConfig,
    ranks: int,
    model: DbrxForComposer,
    optimizer: torch.optim.Optimizer,
    storages: Storages,
    *,
    bf16: bool,
) -> None:
    """Run a step as Composer's Trainer does with our callbacks."""
    rows, params = config.global_train_batch_size // ranks, [p for p in model.parameters() if p.requires_grad]
    optimizer.zero_grad()
    batch = _batch(config, rows, ranks)
    size = train_microbatch_rows(config, ranks)
    autocast = torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()
    if config.model.ffn_config.moe_lbl_scope == "batch" and config.model.ffn_config.moe_loss_weight and size < rows:
        with storages.phase("count experts", "activations"), torch.no_grad(), autocast:
            counts = torch.stack([model({**part, "labels": None}).counts_LE for part in _split(batch, size)]).sum(0)
        batch["expert_counts"] = counts.expand(rows, *counts.shape)
    for number, part in enumerate(_split(batch, size)):
        of = f" {number + 1}" if size < rows else ""
        with storages.phase(f"forward{of}", "activations"), autocast:
            outputs = model(part)
            loss = model.loss(outputs, part)["total"]
        with storages.phase(f"backward{of}", "activations"):
            loss.backward()
        # StepCheck frees these tensors at the same point.
        del outputs, loss
    with storages.phase("optimizer", "optimizer"):
        norm = total_norm(squared_norms(params).tolist(), params)
        if (clipping := config.algorithms.gradient_clipping) is not None:
            clip_gradients(params, norm, clipping)
        optimizer.step()


def _batch(config: TrainConfig, rows: int, ranks: int) -> Batch:
    """A batch whose rows each contain one document, in which every token is trained on. It includes the keys that
    callbacks.GlobalBatch adds."""
    tokens = torch.zeros(rows, config.max_seq_len, dtype=torch.int64)
    counted = torch.full((rows,), rows * config.max_seq_len * ranks)
    return {
        "input_ids": tokens,
        "labels": tokens.clone(),
        "document_ids": tokens.clone(),
        "trained_tokens": counted,
        "routed_tokens": counted,
        "device_rows": torch.full((rows,), rows),
    }


def _split(batch: Batch, size: int) -> Iterator[Batch]:
    rows = batch["input_ids"].shape[0]
    for start in range(0, rows, size):
        yield {name: column[start : start + size] for name, column in batch.items()}
