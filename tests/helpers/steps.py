"""Train steps of SGD or AdamW on synthetic rows with Composer's Trainer and the callbacks of a run. The results are
losses, gradient norms, gradients and weights, which tests compare for different ways to split a global batch."""

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from composer.core import Callback, State
from composer.devices import DeviceCPU
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from data.base.durations import Clock
from data.config.dataset import DatasetConfig
from data.config.loader import DataLoaderConfig
from data.config.tokenizer import TokenizerConfig
from data.loading.loader import train_loader
from data.mds.row import Row
from data.mixing.row_plan import RowPlan
from tests.helpers.expert_parallel import LORA, Mutant, difference, draw_adapters, mutate, route_to_first, whole
from train.composer_model import DbrxForComposer
from train.config.optimizer import AlgorithmsConfig, GradientClippingConfig, OptimizerConfig, SchedulerConfig
from train.config.schema import FSDPConfig, TrainConfig
from train.distributed.build_model import build_model
from train.loggers.build import LoggedRun
from train.models.config import AttnConfig, FFNConfig, LoraConfig, ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.recompute import named_parameters
from train.optim.optimizers import build_optimizer
from train.run.trainer import build_trainer
from train.stability.step_check import StepCheck
from train.supervision.events import Events

STEPS, ROWS, LENGTH = 5, 16, 24


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a global batch is split and a step is computed."""

    fsdp: FSDPConfig | None = None
    microbatches: int = 1
    scope: Literal["ranks", "microbatch", "batch"] = "batch"
    checkpointing: Literal["none", "block", "selective"] = "none"
    impl: Literal["torch", "grouped_mm"] = "torch"
    moe_recompute: bool = False
    clip: float | None = None
    """The norm to which gradients are clipped."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lora: str | None = None
    """A key of LORA."""
    on_first: bool = False
    """Whether all tokens are sent to the first expert."""
    mutant: Mutant | None = None

    @property
    def reference(self) -> "Cut":
        """The same step on one rank in one microbatch."""
        # Only with FSDP2 is a base separate from its adapters.
        fsdp = FSDPConfig() if self.lora is not None else None
        return replace(
            self, fsdp=fsdp, microbatches=1, scope="batch", checkpointing="none", moe_recompute=False, mutant=None
        )


@dataclass(frozen=True, kw_only=True)
class Trained:
    losses: Tensor
    """[STEPS] losses in fp64. Composer logs losses only in fp32."""
    norms: Tensor
    """[STEPS] norms of all gradients before clipping, in fp64."""
    first_gradients: dict[str, Tensor]
    """Gradients of the first step before clipping."""
    initial_weights: dict[str, Tensor]
    final_weights: dict[str, Tensor]


def differences(found: Trained, expected: Trained) -> dict[str, float]:
    """Return the largest relative difference of each field."""
    worst = {}
    for field in dataclasses.fields(Trained):
        pair = [getattr(each, field.name) for each in (found, expected)]
        mine, other = (each if isinstance(each, dict) else {field.name: each} for each in pair)
        worst[field.name] = difference(mine, other)
    return worst


class MadeRows:
    """Rows of two documents and padding, with different loss masks: some rows train one token, some all tokens, some no
    token."""

    n_rows, max_seq_len, fingerprint, folder = STEPS * ROWS, LENGTH, "made", Path("made")
    shard_sizes, tokens, is_remote = np.array([STEPS * ROWS]), None, False

    def read(self, row_id: int) -> Row:
        # Two batches alternate, so that the loss falls.
        draw = np.random.default_rng(row_id % (2 * ROWS))
        lengths = draw.integers(3, LENGTH // 2, 2, dtype=np.int32)
        n = int(lengths.sum())
        place, mask = row_id % ROWS, np.zeros(n, dtype=np.uint8)
        if row_id // ROWS % 2:
            # All ranks except the first, and most of its microbatches, have no trained tokens.
            mask[1:] = place in (2, 3)
        else:
            mask[1 : 2 + place * 2] = 1
        return Row(draw.integers(0, 48, n, dtype=np.int32), mask, lengths)


class Steps(Callback):
    """Records losses, gradient norms and the first gradients."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.first_gradients: dict[str, Tensor] = {}
        self.loss = torch.zeros((), dtype=torch.float64)

    def after_loss(self, state: State, logger: Logger) -> None:
        assert isinstance(state.loss, dict)
        share = state.batch["input_ids"].shape[0] / state.batch["device_rows"][0]
        self.loss += state.loss["total"].detach() * share

    def after_train_batch(self, state: State, logger: Logger) -> None:
        gradients = {
            name.replace("module.", "").replace("model.", ""): whole(param.grad)
            for name, param in named_parameters(state.model)
            if param.requires_grad
        }
        self.first_gradients = self.first_gradients or gradients
        self.norms.append(torch.stack([gradient.double().norm() for gradient in gradients.values()]).norm().item())

    def batch_end(self, state: State, logger: Logger) -> None:
        dist.all_reduce(self.loss)
        self.losses.append(self.loss.item() / dist.get_world_size())
        assert state.total_loss_dict["loss/train/total"] == pytest.approx(self.losses[-1], rel=1e-5)
        self.loss.zero_()


def config_of(cut: Cut) -> TrainConfig:
    dataset = DatasetConfig(hf_name="json", max_seq_len=LENGTH, shuffle=False)
    ffn = FFNConfig(
        ffn_hidden_size=24,
        moe_num_experts=4,
        moe_top_k=2,
        moe_loss_weight=0.1,
        moe_zloss_weight=0.01,
        moe_lbl_scope=cut.scope,
        moe_impl=cut.impl,
        moe_recompute=cut.moe_recompute,
    )
    model = ModelConfig(
        # Rows packed in 4 bits must be multiples of 8 bytes.
        d_model=128 if cut.lora == "over nf4" else 16,
        n_heads=4,
        n_layers=2,
        max_seq_len=LENGTH,
        # Not divisible by 4 ranks.
        vocab_size=50,
        attn_config=AttnConfig(kv_n_heads=2),
        ffn_config=ffn,
        initializer_range=0.1,
    )
    clipping = None
    if cut.clip is not None:
        clipping = GradientClippingConfig(clipping_type="norm", clipping_threshold=cut.clip)
    return TrainConfig(
        max_seq_len=LENGTH,
        model=model,
        lora=_lora_of(cut),
        tokenizer=TokenizerConfig(name="unused"),
        train_loader=DataLoaderConfig(name="finetuning", dataset=dataset, num_workers=0),
        optimizer=OptimizerConfig(name=cut.optimizer, lr=0.1 if cut.optimizer == "sgd" else 3e-3),
        scheduler=SchedulerConfig(name="constant_with_warmup"),
        algorithms=AlgorithmsConfig(gradient_clipping=clipping),
        max_duration=f"{STEPS}ba",
        global_train_batch_size=ROWS,
        device_train_microbatch_size=ROWS // dist.get_world_size() // cut.microbatches,
        precision="fp32",
        fsdp_config=cut.fsdp and replace(cut.fsdp, activation_checkpointing=cut.checkpointing),
        progress_bar=False,
        log_to_console=False,
        eval_interval="1ba",
        save_interval="1ba",
    )


def _lora_of(cut: Cut) -> LoraConfig | None:
    if cut.lora is None:
        return None
    # 3 rows of A cannot be divided evenly over ranks; torch's grouped GEMM needs rows that are multiples of 16 bytes.
    return replace(LORA[cut.lora], r=4 if cut.impl == "grouped_mm" else 3)


def train_cuts(cuts: list[Cut], *dtypes: torch.dtype) -> list[dict[torch.dtype, Trained]]:
    """Train each cut with each dtype. Called by run_ranks."""
    dist.initialize_dist("cpu", timeout=60)
    return [{dtype: _train(cut, dtype) for dtype in dtypes} for cut in cuts]


def _train(cut: Cut, dtype: torch.dtype) -> Trained:
    config, steps = config_of(cut), Steps()
    model = build_cut(config, cut, dtype)
    initial = {name: whole(param) for name, param in named_parameters(model)}
    fit_made_rows(config, model, steps)
    return Trained(
        losses=torch.tensor(steps.losses, dtype=torch.float64),
        norms=torch.tensor(steps.norms, dtype=torch.float64),
        first_gradients=steps.first_gradients,
        initial_weights=initial,
        final_weights={name: whole(param) for name, param in named_parameters(model)},
    )


def build_cut(config: TrainConfig, cut: Cut, dtype: torch.dtype) -> DbrxForCausalLM:
    """Build the model of the config on the mesh of the cut."""
    model = build_model(
        config.model,
        config.fsdp_config,
        precision="fp32",
        device=torch.device("cpu"),
        seed=5,
        dtype=dtype,
        lora=config.lora,
    )
    draw_adapters(model)
    if cut.on_first:
        route_to_first(model)
    if cut.mutant is not None:
        mutate(model, cut.mutant)
    return model


def fit_made_rows(config: TrainConfig, model: DbrxForCausalLM, *callbacks: Callback) -> None:
    """Train STEPS steps on MadeRows."""
    streams: Any = {"": MadeRows()}
    clock = Clock(tokens_per_batch=ROWS * LENGTH, rows_per_batch=ROWS, rows_per_epoch=ROWS * STEPS, max_batches=STEPS)
    plan = RowPlan(config.train_loader, streams, clock, seed=0)
    loader = train_loader(
        streams,
        config.train_loader,
        plan,
        n_batches=STEPS + 1,
        rank=dist.get_global_rank(),
        world_size=dist.get_world_size(),
        pad_token_id=0,
    )
    optimizer = build_optimizer(config.optimizer, model)
    trainer = build_trainer(
        config,
        model=DbrxForComposer(config.model, model),
        optimizer=optimizer,
        device=DeviceCPU(),
        train_loader=loader,
        eval_loader=None,
        clock=clock,
        plan=plan,
        callbacks=[*callbacks, StepCheck(config, plan, model, Events(None), clock=clock, folder=None, saver=None)],
        run=LoggedRun(name="step"),
        precision="fp32",
        state=None,
    )
    trainer.fit()
    trainer.close()
