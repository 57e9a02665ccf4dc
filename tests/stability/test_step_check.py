"""In runs on 2 ranks, non-finite losses and gradients never reach the weights, and incidents are written."""

import json
import math
from pathlib import Path

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger

from tests.helpers.faults import Ended, Fault, is_finite, run_with
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from train.checkpoint.load import open_checkpoint
from train.checkpoint.state import read_state
from train.config.supervision import ExpertsConfig
from train.models.dbrx import DbrxOutput
from train.stability.incidents import read_incident
from train.supervision.exit_codes import ExitCode
from train.supervision.record_file import RECORD

STEPS = ExpertsConfig().max_share_steps
SMALL = ["eval_loader=null", "device_train_microbatch_size=2", "max_duration=6ba"]
NAN, INF = math.nan, math.inf


def all_stopped(path: str) -> dict[str, Ended]:
    return {
        "whole": run_with(path, [*SMALL, "run_name=whole"]),
        "loss on all": run_with(path, [*SMALL, "run_name=all"], Fault([1], loss=NAN)),
        "loss on one": run_with(path, [*SMALL, "run_name=one"], Fault([3], loss=INF, ranks=[1])),
        "resumed": run_with(path, [*SMALL, "run_name=one", "autoresume=true"]),
        "gradient on one": run_with(path, [*SMALL, "run_name=gradient"], Fault([1], gradient=INF, ranks=[1])),
        "diverged": run_with(path, [*SMALL, "run_name=diverged", "optimizer.lr=1e6", "fsdp_config=null"]),
    }


@pytest.mark.ranks
def test_a_run_stops_before_a_step_that_is_not_finite_and_loses_no_work(tmp_path: Path) -> None:
    ends, other = run_ranks(all_stopped, 2, write_toy_run(tmp_path))
    whole, resumed, messages = ends["whole"], ends["resumed"], {}
    assert whole.events == []
    for name, batch in (("loss on all", 1), ("loss on one", 3), ("gradient on one", 1), ("diverged", 2)):
        assert ends[name].code == other[name].code == ExitCode.UNSTABLE, name
        assert ends[name].kinds()[:1] == [(batch, "nonfinite")]
        messages[name] = ends[name].events[0]["message"]
    # The state before the batch was saved: the next start trains it, and ends like an uninterrupted run.
    assert list(resumed.losses) == [4, 5, 6]
    assert all(torch.equal(weight, whole.weights[key]) for key, weight in resumed.weights.items())
    assert "the loss is nan on all ranks" in messages["loss on all"]
    assert "the loss is inf on rank 1" in messages["loss on one"]
    name = "transformer.blocks.0.norm_attn_norm.attn.out_proj.weight"
    assert f"the gradient of {name} is not finite on rank 1" in messages["gradient on one"]
    assert "composer -n 2 scripts/replay_batch.py" in messages["loss on one"]
    saved = tmp_path / "one" / "ep0-ba3"
    assert str(saved) in str(ends["loss on one"].stopped)
    # The record has a line for this checkpoint as for others; the batch after it is not counted.
    record = [json.loads(line) for line in (saved.parent / RECORD).read_text().splitlines()]
    assert [line["rows"] for line in record if line["batch"] == 3 and "rows" in line and "event" not in line] == [
        {"": 24}
    ]
    assert read_state(open_checkpoint(saved)).callbacks["StepCheck"]["nonfinite"] == 0
    incident = read_incident(tmp_path / "one" / "incidents" / "ba3")
    assert [math.isfinite(float.fromhex(part.loss)) for part in incident.ranks] == [True, False]
    assert [len(part.rows[""]) for part in incident.ranks] == [4, 4]


class Collapse(Callback):
    """Report counts as if the router had sent all tokens of layer 1 to expert 2."""

    def after_forward(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value < STEPS:
            assert isinstance(state.outputs, DbrxOutput)
            counts_LE = state.outputs.counts_LE.clone()
            tokens = counts_LE[1].sum() // 2
            counts_LE[1] = torch.tensor([0, 0, 1, 1]) * tokens
            state.outputs = state.outputs._replace(counts_LE=counts_LE)


def all_skipped(path: str) -> dict[str, Ended]:
    skip = [*SMALL, "on_nonfinite=skip"]
    return {
        "without": run_with(path, [*skip, "save_folder=null"], Fault([2, 3], drop=True)),
        "skipped": run_with(path, [*skip, "run_name=a"], Fault([2, 3], gradient=INF, ranks=[1])),
        "lion": run_with(
            path,
            [*skip, "fsdp_config=null", "save_folder=null", "optimizer.name=decoupled_lionw", "optimizer.lr=1e-3"],
            Fault([2], loss=NAN, ranks=[0]),
        ),
        "always": run_with(path, [*skip, "run_name=b", "spikes={max_steps: 3}"], Fault(range(1, 6), loss=NAN)),
        "experts": run_with(path, [*skip, "run_name=c", f"max_duration={STEPS + 2}ba"], Collapse()),
    }


@pytest.mark.ranks
def test_steps_that_are_not_finite_are_skipped_but_not_forever(tmp_path: Path) -> None:
    ends = run_ranks(all_skipped, 2, write_toy_run(tmp_path))[0]
    without, skipped = ends["without"], ends["skipped"]
    assert skipped.kinds() == [(2, "nonfinite"), (3, "nonfinite")]
    # Moments and step counters match too, because later steps depend on them.
    assert all(torch.equal(weight, without.weights[name]) for name, weight in skipped.weights.items())
    assert skipped.code is None
    assert is_finite(ends["lion"].weights)
    always = ends["always"]
    assert always.code == ExitCode.UNSTABLE
    assert "3 consecutive steps" in str(always.stopped)
    assert always.kinds() == [(1, "nonfinite"), (2, "nonfinite"), (3, "nonfinite"), (3, "stopped")]
    places = [(event["batch"], event["event"], event["places"]) for event in ends["experts"].events]
    assert places[0][:2] == (STEPS - 1, "expert_collapse")
    assert [1, 2] in places[0][2]
    assert places[1][:2] == (STEPS, "expert_collapse_end")
