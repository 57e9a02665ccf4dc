"""The loss of a step is the mean over the global batch's trained tokens, for every split over ranks and microbatches.

Uses SGD without clipping: Adam would hide a wrong scale of the gradients.
"""

import itertools

import pytest
import torch

from tests.helpers.expert_parallel import EP2, EP4, HYBRID, HYBRID_EP2, difference
from tests.helpers.ranks import run_ranks
from tests.helpers.steps import Cut, Trained, config_of, differences, train_cuts
from train.callbacks.global_batch import GlobalBatch
from train.composer_model import LanguageTokenAccuracy
from train.config.schema import FSDPConfig
from train.models.dbrx import DbrxForCausalLM
from train.models.init import initialise

FSDP = FSDPConfig()
CUTS = {
    "1 rank, 2 microbatches": (1, Cut(microbatches=2)),
    "1 rank, 4 microbatches": (1, Cut(microbatches=4)),
    "1 rank, FSDP2, block": (1, Cut(fsdp=FSDP, scope="ranks", checkpointing="block")),
    "1 rank, FSDP2, 2 microbatches, selective": (1, Cut(fsdp=FSDP, microbatches=2, checkpointing="selective")),
    "2 ranks, DDP": (2, Cut(scope="ranks")),
    "2 ranks, DDP, 2 microbatches": (2, Cut(microbatches=2)),
    "2 ranks, FSDP2": (2, Cut(fsdp=FSDP)),
    "2 ranks, FSDP2, selective": (2, Cut(fsdp=FSDP, scope="ranks", checkpointing="selective")),
    "2 ranks, FSDP2, 2 microbatches, block": (2, Cut(fsdp=FSDP, microbatches=2, checkpointing="block")),
    "2 ranks, FSDP2, 4 microbatches, selective": (2, Cut(fsdp=FSDP, microbatches=4, checkpointing="selective")),
    "4 ranks, FSDP2": (4, Cut(fsdp=FSDP, scope="ranks")),
    "2x2 ranks, HSDP": (4, Cut(fsdp=HYBRID, scope="ranks")),
    "EP 2": (2, Cut(fsdp=EP2)),
    "EP 2, 2 microbatches, block": (2, Cut(fsdp=EP2, microbatches=2, checkpointing="block")),
    "EP 2, 4 microbatches, selective": (2, Cut(fsdp=EP2, microbatches=4, checkpointing="selective")),
    "EP 4": (4, Cut(fsdp=EP4)),
    "EP 2 x 2 shards": (4, Cut(fsdp=EP2)),
    "2 replicas of EP 2": (4, Cut(fsdp=HYBRID_EP2)),
}
"""Each must equal the step of one rank with one microbatch."""

RECOMPUTED = {
    f"{scope}, {policy}": (2, Cut(fsdp=FSDP, microbatches=2, scope=scope, checkpointing=policy))
    for scope in ("ranks", "microbatch")
    for policy in ("none", "block", "selective")
}
"""Where the loss depends on the split, each must equal the step without activation checkpointing."""


Runs = dict[str, dict[torch.dtype, Trained]]


@pytest.fixture(scope="module")
def runs() -> Runs:
    """All runs, with one launch per number of ranks."""
    named = {"reference": (1, Cut(scope="ranks")), **CUTS, **RECOMPUTED}
    results = {}
    for world_size in (1, 2, 4):
        names = [name for name, (size, _) in named.items() if size == world_size]
        cuts = [named[name][1] for name in names]
        trained = run_ranks(train_cuts, world_size, cuts, torch.float64, torch.float32, timeout=150)
        results.update(zip(names, trained[0], strict=True))
    return results


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_splitting_a_step_changes_nothing(runs: Runs, name: str, dtype: torch.dtype, bound: float) -> None:
    reference = runs["reference"][dtype]
    assert reference.losses[0] - reference.losses[-2] > 0.05
    compare(runs[name][dtype], reference, bound)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", [name for name in RECOMPUTED if not name.endswith("none")])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_activation_checkpointing_changes_nothing(runs: Runs, name: str, dtype: torch.dtype, bound: float) -> None:
    compare(runs[name][dtype], runs[f"{name.split(',')[0]}, none"][dtype], bound)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["reference", *CUTS])
def test_initial_weights_from_meta_are_those_of_direct_init(runs: Runs, name: str) -> None:
    config = config_of(Cut()).model
    direct = DbrxForCausalLM(config)
    initialise(direct, config, seed=5)
    for param_name, param in direct.named_parameters():
        assert torch.equal(runs[name][torch.float32].initial_weights[param_name], param), param_name


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(400)
def test_the_scope_of_the_load_balancing_loss_matters(runs: Runs) -> None:
    """With several microbatches, `ranks` and `microbatch` give a different load-balancing loss than the whole batch."""
    losses = [runs[name][torch.float64].losses[0] for name in ("reference", "ranks, none", "microbatch, none")]
    assert all(abs(a - b) > 1e-6 for a, b in itertools.combinations(losses, 2))


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(400)
def test_balancing_over_the_global_batch_survives_recomputation(runs: Runs) -> None:
    """Only the router's gradients show the scope if blocks are recomputed: the balance differs between microbatches."""
    reference = runs["reference"][torch.float64].first_gradients
    names = [name for name in reference if ".router." in name]
    assert len(names) == 2
    for name in names:
        kept, lost = (
            difference({name: runs[run][torch.float64].first_gradients[name]}, {name: reference[name]})
            for run in ("EP 2, 2 microbatches, block", "microbatch, block")
        )
        assert kept <= 1e-10, name
        assert lost > 1e-3, name


def compare(cut: Trained, reference: Trained, bound: float) -> None:
    worst = differences(cut, reference)
    assert max(worst.values()) <= bound, worst


def test_the_cost_of_counting_is_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    callback = GlobalBatch(config_of(Cut()).model)
    callback.print_cost(n_rows=8, microbatch_size=2)
    callback.print_cost(n_rows=8, microbatch_size=2)
    assert capsys.readouterr().out == (
        "moe_lbl_scope: batch costs an extra forward pass over the 4 microbatches of each step: a third more FLOPs\n"
    )
    GlobalBatch(config_of(Cut(scope="ranks")).model).print_cost(n_rows=8, microbatch_size=2)
    assert capsys.readouterr().out == ""


def test_token_accuracy_is_the_share_of_trained_tokens() -> None:
    metric, correct = LanguageTokenAccuracy(), torch.tensor([[True, False, True], [False, False, True]])
    metric.update(correct, torch.ones_like(correct))
    metric.update(correct[:1], torch.tensor([[True, False, True]]))
    assert metric.compute() == pytest.approx(5 / 8)
