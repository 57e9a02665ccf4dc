"""The loss of a step is the mean over the global batch's trained tokens, however they fall on ranks and microbatches.

SGD, and no clipping: Adam would hide a wrong scale of the gradients.
"""

import itertools
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
from torch.distributed.tensor import DTensor

from data.base.durations import Clock
from data.config.dataset import DatasetConfig
from data.config.loader import DataLoaderConfig
from data.config.tokenizer import TokenizerConfig
from data.loading.loader import train_loader
from data.mds.row import Row
from data.mixing.row_plan import RowPlan
from tests.helpers.ranks import run_ranks
from train.callbacks.global_batch import GlobalBatch
from train.composer_model import DbrxForComposer, LanguageTokenAccuracy
from train.config.optimizer import OptimizerConfig, SchedulerConfig
from train.config.schema import FSDPConfig, TrainConfig
from train.distributed.build_model import build_model
from train.models.config import AttnConfig, FFNConfig, ModelConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.init import initialise
from train.models.recompute import named_parameters
from train.optim.optimizers import build_optimizer
from train.run.trainer import build_trainer

STEPS, ROWS, LENGTH = 5, 8, 24
EP2, EP4 = FSDPConfig(expert_parallel_degree=2), FSDPConfig(expert_parallel_degree=4)
HYBRID = FSDPConfig(sharding_strategy="HYBRID_SHARD", data_parallel_replicate_degree=2)


class MadeRows:
    """Rows of two documents and padding, with very different masks: some train one token, some every one, some none."""

    n_rows, max_seq_len, fingerprint, folder = STEPS * ROWS, LENGTH, "made", Path("made")
    shard_sizes, tokens, is_remote = np.array([STEPS * ROWS]), None, False

    def read(self, row_id: int) -> Row:
        # Two batches in turn, so that the loss falls.
        draw = np.random.default_rng(row_id % (2 * ROWS))
        lengths = draw.integers(3, LENGTH // 2, 2, dtype=np.int32)
        n = int(lengths.sum())
        place, mask = row_id % ROWS, np.zeros(n, dtype=np.uint8)
        if row_id // ROWS % 2:
            # The whole second rank of two, and one microbatch of the first, have nothing to train on.
            mask[1:] = place in (2, 3)
        else:
            mask[1 : 2 + place * 2] = 1
        return Row(draw.integers(0, 48, n, dtype=np.int32), mask, lengths)


class Steps(Callback):
    """Losses and gradient norms of the run, in fp64: what Composer logs passes through fp32."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.first_grads: dict[str, torch.Tensor] = {}
        self.loss = torch.zeros((), dtype=torch.float64)

    def after_loss(self, state: State, logger: Logger) -> None:
        share = state.batch["input_ids"].shape[0] / state.batch["device_rows"][0]
        self.loss += state.loss["total"].detach() * share

    def after_train_batch(self, state: State, logger: Logger) -> None:
        grads = {name: _whole(param.grad) for name, param in named_parameters(state.model)}
        self.first_grads = self.first_grads or {f"gradient of {name}": grad.clone() for name, grad in grads.items()}
        self.norms.append(torch.stack([grad.double().norm() for grad in grads.values()]).norm().item())

    def batch_end(self, state: State, logger: Logger) -> None:
        dist.all_reduce(self.loss)
        self.losses.append(self.loss.item() / dist.get_world_size())
        assert state.total_loss_dict["loss/train/total"] == pytest.approx(self.losses[-1], rel=1e-5)
        self.loss.zero_()


@dataclass(frozen=True)
class Cut:
    fsdp: FSDPConfig | None
    microbatch: int
    scope: str = "ranks"
    checkpointing: Literal["none", "block", "selective"] = "none"


def _whole(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _config(cut: Cut) -> TrainConfig:
    dataset = DatasetConfig(hf_name="json", max_seq_len=LENGTH, shuffle=False)
    fsdp = cut.fsdp and replace(cut.fsdp, activation_checkpointing=cut.checkpointing)
    ffn = FFNConfig(
        ffn_hidden_size=24,
        moe_num_experts=4,
        moe_top_k=2,
        moe_loss_weight=0.1,
        moe_zloss_weight=0.01,
        moe_lbl_scope=cut.scope,  # type: ignore[arg-type]
    )
    return TrainConfig(
        max_seq_len=LENGTH,
        model=ModelConfig(
            d_model=16,
            n_heads=4,
            n_layers=2,
            max_seq_len=LENGTH,
            # Not divisible by 4 ranks.
            vocab_size=50,
            attn_config=AttnConfig(kv_n_heads=2),
            ffn_config=ffn,
            initializer_range=0.1,
        ),
        tokenizer=TokenizerConfig(name="unused"),
        train_loader=DataLoaderConfig(name="finetuning", dataset=dataset, num_workers=0),
        optimizer=OptimizerConfig(name="sgd", lr=0.1),
        scheduler=SchedulerConfig(name="constant_with_warmup"),
        max_duration=f"{STEPS}ba",
        global_train_batch_size=ROWS,
        device_train_microbatch_size=cut.microbatch,
        precision="fp32",
        fsdp_config=fsdp,
        progress_bar=False,
        log_to_console=False,
        eval_interval="1ba",
        save_interval="1ba",
    )


def _train(cut: Cut, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    dist.initialize_dist("cpu", timeout=60)
    config = _config(cut)
    model = build_model(
        config.model, config.fsdp_config, precision="fp32", device=torch.device("cpu"), seed=5, dtype=dtype
    )
    initial = {f"initial {name}": _whole(param).detach().clone() for name, param in named_parameters(model)}
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
    steps = Steps()
    trainer = build_trainer(
        config,
        model=DbrxForComposer(config.model, model),
        optimizer=build_optimizer(config.optimizer, model),
        device=DeviceCPU(),
        train_loader=loader,
        eval_loader=None,
        clock=clock,
        plan=plan,
        callbacks=[steps],
        run_name="step",
        precision="fp32",
        state=None,
    )
    trainer.fit()
    trainer.close()
    weights = {name: _whole(param).detach() for name, param in named_parameters(model)}
    series = {name: torch.tensor(getattr(steps, name), dtype=torch.float64) for name in ("losses", "norms")}
    grads = {name.replace("module.", "").replace("model.", ""): grad for name, grad in steps.first_grads.items()}
    return {**series, **weights, **grads, **initial}


def train_cuts(cuts: list[Cut]) -> list[dict[torch.dtype, dict[str, torch.Tensor]]]:
    return [{dtype: _train(cut, dtype) for dtype in (torch.float64, torch.float32)} for cut in cuts]


FSDP, BATCH = FSDPConfig(), "batch"
CUTS = {
    "1 rank, 2 microbatches": (1, Cut(None, 4, BATCH)),
    "1 rank, 4 microbatches": (1, Cut(None, 2, BATCH)),
    "1 rank, FSDP2, block": (1, Cut(FSDP, 8, checkpointing="block")),
    "1 rank, FSDP2, 2 microbatches, selective": (1, Cut(FSDP, 4, BATCH, "selective")),
    "2 ranks, DDP": (2, Cut(None, 8)),
    "2 ranks, DDP, 2 microbatches": (2, Cut(None, 2, BATCH)),
    "2 ranks, FSDP2": (2, Cut(FSDP, 8, BATCH)),
    "2 ranks, FSDP2, selective": (2, Cut(FSDP, 8, "ranks", "selective")),
    "2 ranks, FSDP2, 2 microbatches, block": (2, Cut(FSDP, 2, BATCH, "block")),
    "2 ranks, FSDP2, 4 microbatches, selective": (2, Cut(FSDP, 1, BATCH, "selective")),
    "4 ranks, FSDP2": (4, Cut(FSDP, 8)),
    "2x2 ranks, HSDP": (4, Cut(HYBRID, 8)),
    "EP 2": (2, Cut(EP2, 8, BATCH)),
    "EP 2, 2 microbatches, block": (2, Cut(EP2, 2, BATCH, "block")),
    "EP 2, 4 microbatches, selective": (2, Cut(EP2, 1, BATCH, "selective")),
    "EP 4": (4, Cut(EP4, 8, BATCH)),
    "EP 2 x 2 shards": (4, Cut(EP2, 8, BATCH)),
    "2 replicas of EP 2": (4, Cut(replace(HYBRID, expert_parallel_degree=2), 8, BATCH)),
}
"""Each has to be the step of one rank with one microbatch."""

RECOMPUTED = {
    f"{scope}, {policy}": (2, Cut(FSDP, 2, scope, policy))
    for scope in ("ranks", "microbatch")
    for policy in ("none", "block", "selective")
}
"""Where the loss depends on the cut, each has to be the step without activation checkpointing."""


@pytest.fixture(scope="module")
def runs() -> dict[str, Any]:
    """Every cut, with one launch for each number of ranks."""
    named = {"reference": (1, Cut(None, ROWS)), **CUTS, **RECOMPUTED}
    results = {}
    for world_size in (1, 2, 4):
        names = [name for name, (size, _) in named.items() if size == world_size]
        trained = run_ranks(train_cuts, world_size, [named[name][1] for name in names], timeout=150)
        results.update(zip(names, trained[0], strict=True))
    return results


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_a_cut_changes_nothing(runs: dict[str, Any], name: str, dtype: torch.dtype, bound: float) -> None:
    reference = runs["reference"][dtype]
    assert reference["losses"][0] - reference["losses"][-2] > 0.05
    compare(runs[name][dtype], reference, bound)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", [name for name in RECOMPUTED if not name.endswith("none")])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_activation_checkpointing_changes_nothing(
    runs: dict[str, Any], name: str, dtype: torch.dtype, bound: float
) -> None:
    compare(runs[name][dtype], runs[f"{name.split(',')[0]}, none"][dtype], bound)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["reference", *CUTS])
def test_initial_weights_from_meta_are_those_of_direct_init(runs: dict[str, Any], name: str) -> None:
    config = _config(Cut(None, ROWS)).model
    direct = DbrxForCausalLM(config)
    initialise(direct, config, seed=5)
    for param_name, param in direct.named_parameters():
        assert torch.equal(runs[name][torch.float32][f"initial {param_name}"], param), param_name


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(400)
def test_the_scope_decides(runs: dict[str, Any]) -> None:
    """With several microbatches the load-balancing loss of `ranks` and `microbatch` is not that of the whole batch."""
    losses = [runs[name][torch.float64]["losses"][0] for name in ("reference", "ranks, none", "microbatch, none")]
    assert all(abs(a - b) > 1e-6 for a, b in itertools.combinations(losses, 2))


def compare(cut: dict[str, torch.Tensor], reference: dict[str, torch.Tensor], bound: float) -> None:
    assert cut.keys() == reference.keys()
    for key, expected in reference.items():
        difference = (cut[key] - expected).abs().max() / expected.abs().max()
        assert difference <= bound, f"{key} differs by {difference:.1e}"


def test_what_counting_costs_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    callback = GlobalBatch(_config(Cut(None, 2, BATCH)).model)
    callback.print_cost(n_rows=8, microbatch_size=2)
    callback.print_cost(n_rows=8, microbatch_size=2)
    assert capsys.readouterr().out == (
        "moe_lbl_scope: batch costs a forward over a step's 4 microbatches before each step: a third more FLOPs\n"
    )
    GlobalBatch(_config(Cut(None, 2, "ranks")).model).print_cost(n_rows=8, microbatch_size=2)
    assert capsys.readouterr().out == ""


def test_token_accuracy_is_the_share_of_trained_tokens() -> None:
    metric, correct = LanguageTokenAccuracy(), torch.tensor([[True, False, True], [False, False, True]])
    metric.update(correct, torch.ones_like(correct))
    metric.update(correct[:1], torch.tensor([[True, False, True]]))
    assert metric.compute() == pytest.approx(5 / 8)
