"""After a rollback, runs on 2 ranks end as if the steps since the checkpoint had never happened, even after a kill."""

from pathlib import Path
from typing import Any

import pytest
import torch
from composer.devices import DeviceCPU
from composer.utils import dist
from torch import nn

from tests.helpers.faults import Ended, Fault, Kill, run_with
from tests.helpers.ranks import run_ranks
from tests.helpers.saved_checkpoints import write_checkpoint
from tests.helpers.toy_run import write_toy_run
from train.checkpoint.load import open_checkpoint, saved_tensors
from train.checkpoint.storage.manifest import CorruptCheckpointError
from train.distributed.process_group import initialize_dist
from train.stability import rollback
from train.stability.rollback import roll_back

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
        # The rows of batches 4 and 5 are lost in the rollback to ep0-ba4; batches 6 to 8 are the spike itself.
        "without": run_with(path, [*OVERRIDES, "run_name=without"], Fault(range(4, 9), drop=True)),
        "rolled back": run_with(path, [*OVERRIDES, "run_name=rolled"], spike()),
        "killed before a save": killed(path, 7),
        "killed after a save within the spike": killed(path, 9),
    }


@pytest.mark.ranks
def test_a_rollback_undoes_the_steps_since_the_checkpoint(tmp_path: Path) -> None:
    ends = run_ranks(all_runs, 2, write_toy_run(tmp_path))[0]
    without = ends.pop("without")
    assert without.events == []
    rolled = ends["rolled back"]
    assert rolled.kinds() == [(6, "rollback"), (9, "spike_end")]
    assert rolled.events[0]["checkpoint"] == "ep0-ba4"
    for name, ended in ends.items():
        assert [*ended.losses][-1] == 11
        assert all(torch.equal(weight, without.weights[key]) for key, weight in ended.weights.items()), name
    # The rollback that the kill undid was made again with the same result.
    assert ends["killed before a save"].kinds() == [(6, "rollback"), (6, "rollback"), (9, "spike_end")]
    assert "rollback 1 of 3" in ends["killed before a save"].events[1]["message"]
    assert ends["killed after a save within the spike"].kinds() == [(6, "rollback"), (9, "spike_end")]


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()


def test_a_rollback_needs_no_second_state_of_the_optimizer(tmp_path: Path) -> None:
    model, optimizer = trained()
    checkpoint = write_checkpoint(tmp_path, saved_tensors(model, optimizer))
    before = {key: value.clone() for key, value in saved_tensors(model, optimizer).items()}
    places = {key: value.data_ptr() for key, value in saved_tensors(model, optimizer).items()}
    step(model, optimizer)
    back = roll_back([checkpoint], model, optimizer)
    assert back is not None
    assert back.checkpoint == checkpoint
    assert all(param.grad is None for param in model.parameters())
    after = saved_tensors(model, optimizer)
    assert len(after) == 8
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert {key: value.data_ptr() for key, value in after.items()} == places


def where_ranks_go(folder: Path) -> list[str]:
    """Make the newest checkpoint unreadable on rank 1, then on rank 0."""
    initialize_dist(DeviceCPU(), 60)
    model, optimizer = trained()
    paths, found = [folder / "ep0-ba1", folder / "ep0-ba2"], []
    for unreadable in (1, 0):

        def read(path: Path, rank: int = unreadable) -> Any:
            if path == paths[1] and dist.get_global_rank() == rank:
                raise CorruptCheckpointError(path, "state.json", "cannot be read")
            return open_checkpoint(path)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rollback, "open_checkpoint", read)
            back = roll_back(paths, model, optimizer)
        assert back is not None
        found.append(back.checkpoint.name)
    return found


@pytest.mark.ranks
def test_all_ranks_roll_back_to_the_same_checkpoint(tmp_path: Path) -> None:
    tensors = saved_tensors(*trained())
    for batch in (1, 2):
        write_checkpoint(tmp_path, tensors, batch=batch)
    assert run_ranks(where_ranks_go, 2, tmp_path) == [["ep0-ba2", "ep0-ba1"]] * 2
