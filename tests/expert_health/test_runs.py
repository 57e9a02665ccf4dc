"""Runs with measured and reported experts, on 2 ranks."""

import contextlib
import io
from typing import Any

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from torch.distributed.tensor import DTensor, distribute_tensor

from tests.helpers.faults import Ended, run_with
from tests.helpers.logged import Logged
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run

# FSDP2 keeps the gathered weights after a forward; no later step may compute with them.
SMALL = ["eval_loader=null", "save_interval=2ba", "fsdp_config={reshard_after_forward: false}"]
EXACT = [*SMALL, "model.ffn_config.moe_lbl_scope=batch", "experts={interval: 1ba, probe_tokens: 60}"]
PLANTED = [
    *SMALL,
    "model.ffn_config.moe_top_k=1",
    "optimizer.freeze=['*.router.*']",
    "run_name=planted",
    "experts={interval: null, dead_steps: 4, max_share: 0.2, max_share_steps: 3}",
]
HEALED = 5


class Plant(Callback):
    """Experts 0 and 1 of layer 1 get all tokens, 2 and 3 none; from batch HEALED on, all get some."""

    def batch_start(self, state: State, logger: Logger) -> None:
        weights = [param for name, param in state.model.named_parameters() if "blocks.1.ffn.router" in name]
        rows = torch.zeros(weights[0].shape)
        rows[0, 0], rows[1, 0] = 1.0, -1.0
        if state.timestamp.batch.value >= HEALED:
            rows[2, 1], rows[3, 1] = 3.0, -3.0
        assert isinstance(weights[0].data, DTensor)
        with torch.no_grad():
            weights[0].copy_(distribute_tensor(rows, weights[0].data.device_mesh, weights[0].data.placements))


def exact_runs(path: str) -> dict[str, tuple[Ended, dict[int, dict[str, float]]]]:
    found = {}
    for name, overrides in {
        "measured": ["run_name=measured", "max_duration=3ba"],
        "not measured": ["run_name=not", "max_duration=3ba", "experts.interval=null"],
        # Both schedules are the same warm-up until the run stops.
        "stopped": ["run_name=stopped", "max_duration=2ba", "scheduler.name=constant_with_warmup"],
        "resumed": ["run_name=stopped", "max_duration=3ba", "autoresume=true"],
    }.items():
        logged = Logged("experts/layer")
        found[name] = run_with(path, [*EXACT, *overrides], logged), logged.metrics
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = write_toy_run(tmp_path_factory.mktemp("runs"))
    return run_ranks(all_runs, 2, path)[0]


def all_runs(path: str) -> dict[str, Any]:
    found: dict[str, Any] = exact_runs(path)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run_with(path, [*PLANTED, "max_duration=3ba"], Plant())
        logged = Logged("experts/")
        found["planted"] = run_with(path, [*PLANTED, "max_duration=6ba", "autoresume=true"], Plant(), logged)
    return found | {"planted metrics": logged.metrics, "planted text": out.getvalue()}


@pytest.mark.ranks
def test_measuring_changes_no_bit_of_a_run_with_dropout_and_jitter(runs: dict[str, Any]) -> None:
    (measured, metrics), (other, nothing) = runs["measured"], runs["not measured"]
    assert sorted(metrics) == [0, 1, 2]
    assert nothing == {}
    assert measured.losses == other.losses
    assert all(torch.equal(weight, other.weights[name]) for name, weight in measured.weights.items())


@pytest.mark.ranks
def test_a_resumed_run_measures_what_the_uninterrupted_one_does(runs: dict[str, Any]) -> None:
    (_, whole), (_, resumed) = runs["measured"], runs["resumed"]
    assert resumed == {2: whole[2]}
    assert "experts/layer_0/unchanged_choices" in resumed[2]


@pytest.mark.ranks
def test_planted_faults_are_reported_across_a_resume(runs: dict[str, Any]) -> None:
    events = [
        (event["batch"], event["event"], planted)
        for event in runs["planted"].events
        if (planted := [place for place in event.get("places", []) if place[0] == 1])
    ]
    assert events == [
        (2, "expert_collapse", [[1, 0], [1, 1]]),
        (3, "expert_dead", [[1, 2], [1, 3]]),
        (HEALED, "expert_dead_end", [[1, 2], [1, 3]]),
    ]
    assert "batch 3: no tokens in 4 consecutive steps for expert 2 of layer 1, expert 3 of layer 1" in (
        runs["planted text"].replace("\n", " ")
    )
    assert runs["planted metrics"][4]["experts/dead"] == 2
