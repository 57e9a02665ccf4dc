"""A run that is killed after a checkpoint and restarted ends bit for bit like an uninterrupted run."""

from pathlib import Path

import pytest
import torch

from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from tests.helpers.watched_run import run
from train.checkpoint.save_folder import checkpoints

pytestmark = [pytest.mark.ranks, pytest.mark.slow]

HYBRID = "fsdp_config={sharding_strategy: HYBRID_SHARD, data_parallel_replicate_degree: 2}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "changes",
    [["train_loader.num_workers=0"], ["train_loader.num_workers=2", "model.ffn_config.moe_lbl_scope=batch", HYBRID]],
    ids=["0 workers", "2 workers, lbl over the batch, hybrid shard"],
)
def test_a_killed_run_resumes_exactly(tmp_path: Path, changes: list[str]) -> None:
    path = write_toy_run(tmp_path)
    overrides = ["autoresume=true", *changes]
    whole = run_ranks(run, 2, path, [*overrides, "run_name=whole"])[0]
    with pytest.raises(RuntimeError, match="exit codes"):
        run_ranks(run, 2, path, [*overrides, "run_name=killed"], 7)
    assert [found.name for found in checkpoints(tmp_path / "killed")] == ["ep0-ba4"]
    resumed = run_ranks(run, 2, path, [*overrides, "run_name=killed"])[0]

    assert list(resumed["losses"]) == [5, 6, 7, 8, 9, 10]
    for key in ("rates", "losses"):
        assert resumed[key] == {batch: value for batch, value in whole[key].items() if batch > 4}
    assert resumed["eval"] == whole["eval"]
    assert resumed["weights"].keys() == whole["weights"].keys()
    for name, expected in whole["weights"].items():
        assert torch.equal(resumed["weights"][name], expected), name


@pytest.mark.timeout(300)
def test_a_longer_run_resumes_on_another_number_of_ranks(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    still = ["autoresume=true", "scheduler.name=constant_with_warmup", "model.resid_pdrop=0", "model.emb_pdrop=0"]
    # A load-balancing loss that does not depend on how the batch is split over ranks.
    still += ["model.attn_config.attn_pdrop=0", "model.ffn_config={moe_jitter_eps: 0, moe_lbl_scope: batch}"]
    whole = run_ranks(run, 2, path, [*still, "run_name=whole"])[0]
    run_ranks(run, 2, path, [*still, "run_name=longer", "max_duration=6ba"])
    resumed = run_ranks(run, 1, path, [*still, "run_name=longer"])[0]
    assert list(resumed["losses"]) == [7, 8, 9, 10]
    for batch, loss in resumed["losses"].items():
        assert loss == pytest.approx(whole["losses"][batch], rel=1e-6)
    assert run_ranks(run, 1, path, [*still, "run_name=longer"])[0]["losses"] == {}
