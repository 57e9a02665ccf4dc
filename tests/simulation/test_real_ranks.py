"""A simulated step equals that of real ranks: two gloo ranks, trained by Composer with our callbacks."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from composer.core import Callback, State
from composer.devices import DeviceCPU
from composer.loggers import Logger
from composer.utils import dist
from torch.utils._pytree import tree_map

from data.base.durations import Clock
from data.loading.loader import train_loader
from data.mds.row import Row
from data.mixing.row_plan import RowPlan
from tests.helpers.ranks import run_ranks
from tests.helpers.small_config import load
from train.composer_model import DbrxForComposer
from train.config.schema import TrainConfig
from train.distributed.build_model import build_model
from train.loggers.build import LoggedRun
from train.optim.optimizers import build_optimizer
from train.run.trainer import build_trainer
from train.simulation.collectives import Traffic, answer
from train.simulation.operations import TrackedOperations
from train.simulation.simulate import simulate
from train.simulation.storages import Phase, Storages, counting_resizes
from train.stability.step_check import StepCheck
from train.supervision.events import Events

# Every token goes to every expert, because real routers are not even and the result must not depend on routing.
COMMON = (
    "max_seq_len=32",
    "model={preset: tiny, d_model: 128, n_layers: 3, vocab_size: 512}",
    "model.ffn_config={ffn_hidden_size: 96, moe_num_experts: 4, moe_top_k: 4, moe_impl: grouped_mm}",
    "algorithms={gradient_clipping: {clipping_type: norm, clipping_threshold: 1.0}}",
    "global_train_batch_size=8",
    "device_train_microbatch_size=2",
    # Measurements at intervals are not part of a step.
    "experts.interval=null",
)
CASES = {
    "ep1": ("fsdp_config={activation_checkpointing: block}", "optimizer.name=decoupled_lionw"),
    "ep2": ("fsdp_config={expert_parallel_degree: 2, activation_checkpointing: selective}",),
    "LoRA": ("fsdp_config={}", "lora={r: 4, alpha: 8, target_modules: [attn, experts]}", "model.vocab_size=8192"),
    "HSDP": ("fsdp_config={sharding_strategy: HYBRID_SHARD, data_parallel_replicate_degree: 2}",),
}


class FullRows:
    """Rows of one document each."""

    fingerprint, folder, tokens, is_remote = "full", Path("full"), None, False

    def __init__(self, n_rows: int, length: int) -> None:
        self.n_rows, self.max_seq_len, self.shard_sizes = n_rows, length, np.array([n_rows])

    def read(self, row_id: int) -> Row:
        n = self.max_seq_len
        return Row(np.zeros(n, dtype=np.int32), np.ones(n, dtype=np.uint8), np.array([n], dtype=np.int32))


class CopyingOperations(TrackedOperations):
    """Sends copies, because gloo's threads release the tensors they send with a delay."""

    def collect(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

        def copied(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                pairs.append((value, value.clone()))
                return pairs[-1][1]
            return value

        sent = func(*tree_map(copied, args), **kwargs)
        work = sent[-1] if isinstance(sent, tuple) else sent
        torch.distributed.Work.unbox(work).wait()
        for tensor, copy in pairs:
            tensor.copy_(copy)
        return answer(func, args)


class Phases(Callback):
    """Records the phases of the second step under the names that simulate uses."""

    def __init__(self, operations: TrackedOperations) -> None:
        self.operations, self.stack, self.number = operations, ExitStack(), 0

    def batch_start(self, state: State, logger: Logger) -> None:
        self.number = 0
        self.operations.storages.phases.clear()
        self.operations.traffic.clear()

    def before_forward(self, state: State, logger: Logger) -> None:
        self.number += 1
        self._enter(f"forward {self.number}")

    def before_backward(self, state: State, logger: Logger) -> None:
        self._enter(f"backward {self.number}")

    def after_backward(self, state: State, logger: Logger) -> None:
        self.stack.close()

    def after_train_batch(self, state: State, logger: Logger) -> None:
        self._enter("optimizer")

    def batch_end(self, state: State, logger: Logger) -> None:
        self.stack.close()

    def _enter(self, name: str) -> None:
        self.stack.close()
        self.stack.enter_context(self.operations.storages.phase(name))


class Step(NamedTuple):
    phases: list[Phase]
    traffic: dict[Traffic, int]


def followed(folder: Path) -> dict[str, Step]:
    """The second step of each case on this rank."""
    dist.initialize_dist("cpu", timeout=60)
    found = {}
    for name, overrides in CASES.items():
        (own := folder / f"{name}{dist.get_global_rank()}").mkdir()
        operations = CopyingOperations(Storages())
        with operations, counting_resizes(operations.storages, "gathered weights"):
            _train(load(own, *COMMON, *overrides), Phases(operations))
        found[name] = Step(operations.storages.phases, dict(operations.traffic))
    return found


def _train(config: TrainConfig, phases: Phases) -> None:
    rows = config.global_train_batch_size
    streams: Any = {"": FullRows(3 * rows, config.max_seq_len)}
    clock = Clock(
        tokens_per_batch=rows * config.max_seq_len, rows_per_batch=rows, rows_per_epoch=3 * rows, max_batches=2
    )
    plan = RowPlan(config.train_loader, streams, clock, seed=0)
    ranks = {"rank": dist.get_global_rank(), "world_size": dist.get_world_size()}
    model = build_model(
        config.model, config.fsdp_config, precision="fp32", device=torch.device("cpu"), seed=1, lora=config.lora
    )
    trainer = build_trainer(
        config,
        model=DbrxForComposer(config.model, model),
        optimizer=build_optimizer(config.optimizer, model),
        device=DeviceCPU(),
        train_loader=train_loader(streams, config.train_loader, plan, n_batches=3, pad_token_id=0, **ranks),
        eval_loader=None,
        clock=clock,
        plan=plan,
        callbacks=[phases, StepCheck(config, plan, model, Events(None), clock=clock, folder=None, saver=None)],
        run=LoggedRun(name="step"),
        precision="fp32",
        state=None,
    )
    trainer.fit()
    trainer.close()


@pytest.mark.ranks
def test_a_simulated_step_is_that_of_real_ranks(tmp_path: Path) -> None:
    real = run_ranks(followed, 2, tmp_path)[0]
    for name, overrides in CASES.items():
        simulation, found = simulate(load(tmp_path, *COMMON, *overrides), 2, gpu=False), real[name]
        phases = {phase.name: phase for phase in simulation.phases}
        for phase in found.phases:
            print(name, *phase[:3], *phases[phase.name][1:3])  # bytes at the end and at the peak, real and simulated
            assert phases[phase.name].peak == pytest.approx(phase.peak, rel=0.01), (name, phase.name)
            assert phases[phase.name].alive == pytest.approx(phase.alive, rel=0.01), (name, phase.name)
        for kind, n_bytes in found.traffic.items():
            # Except reductions of a few numbers, which the simulation does not count.
            assert simulation.traffic[kind] == pytest.approx(n_bytes, rel=1e-3, abs=4096), (name, kind)
