"""Rollbacks in runs on 2 ranks: they end as if the steps since the checkpoint had never been, also when killed."""

from pathlib import Path

import pytest
import torch

from tests.helpers.faults import Ended, Fault, Kill, run_with
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run

OVERRIDES = [
    *["eval_loader=null", "model.n_layers=1", "device_train_microbatch_size=4", "max_duration=11ba"],
    *["on_spike=rollback", "spikes={min_steps: 4, window: 8}", "save_interval=4ba"],
]


def spike() -> Fault:
    return Fault(range(6, 9), loss=25.0)


def killed(path: str, batch: int) -> Ended:
    overrides = [*OVERRIDES, f"run_name=killed{batch}"]
    run_with(path, overrides, spike(), Kill(batch))
    return run_with(path, [*overrides, "autoresume=true"], spike())


def all_runs(path: str) -> dict[str, Ended]:
    return {
        # The rows of batches 4 and 5 are lost with the rollback to ep0-ba4, 6 to 8 are the spike itself.
        "without": run_with(path, [*OVERRIDES, "run_name=without"], Fault(range(4, 9), drop=True)),
        "rolled back": run_with(path, [*OVERRIDES, "run_name=rolled"], spike()),
        "killed before a save": killed(path, 7),
        "killed after a save within the spike": killed(path, 9),
    }


@pytest.mark.ranks
def test_a_rollback_leaves_out_the_steps_since_the_checkpoint(tmp_path: Path) -> None:
    ends = run_ranks(all_runs, 2, write_toy_run(tmp_path))[0]
    without = ends.pop("without")
    assert without.events == []
    rolled = ends["rolled back"]
    assert rolled.kinds() == [(6, "rollback"), (9, "spike_end")]
    assert rolled.events[0]["checkpoint"] == "ep0-ba4"
    for name, ended in ends.items():
        assert [*ended.losses][-1] == 11
        assert all(torch.equal(weight, without.weights[key]) for key, weight in ended.weights.items()), name
    # The rollback that was lost with the kill was made again, as the first one.
    assert ends["killed before a save"].kinds() == [(6, "rollback"), (6, "rollback"), (9, "spike_end")]
    assert "rollback 1 of 3" in ends["killed before a save"].events[1]["message"]
    assert ends["killed after a save within the spike"].kinds() == [(6, "rollback"), (9, "spike_end")]
