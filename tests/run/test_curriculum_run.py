"""Runs over a curriculum that are killed in each stage and resumed on other numbers of ranks train the same rows."""

import hashlib
import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from data.base.errors import ConfigError
from tests.helpers.ranks import run_ranks
from tests.helpers.saving import wait_until_saved
from tests.helpers.toy_curriculum import STAGES, write_curriculum
from train.checkpoint.save_folder import checkpoints
from train.config.load import read_config
from train.run.fit import fit
from train.run.inputs import describe, open_inputs
from train.weights.start import find_start

pytestmark = pytest.mark.ranks


class Rows(Callback):
    """Records the rows of each batch, and can end the process like a power failure after one batch."""

    def __init__(self, kill_after: int | None) -> None:
        self.kill_after = kill_after
        self.rows: dict[int, list[str]] = {}

    def before_train_batch(self, state: State, logger: Logger) -> None:
        rows = zip(state.batch["streams"].tolist(), state.batch["input_ids"].numpy(), strict=True)
        self.rows[state.timestamp.batch.value] = [
            f"{s}:{hashlib.sha256(r.tobytes()).hexdigest()[:12]}" for s, r in rows
        ]

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        batch = state.timestamp.batch.value
        if batch == self.kill_after:
            wait_until_saved(state)
            os.kill(os.getpid(), signal.SIGKILL)


def run(path: str, overrides: list[str], rows_file: str, kill_after: int | None = None) -> str | None:
    """Write the rank's rows to a file batch by batch, so that a kill does not lose them. Returns the error, if any."""
    watch = Rows(kill_after)
    rank = os.environ["RANK"]

    class Writes(Callback):
        def after_train_batch(self, state: State, logger: Logger) -> None:
            Path(f"{rows_file}.{rank}").write_text(json.dumps(watch.rows))

    try:
        fit(read_config(path, overrides), callbacks=[watch, Writes()])
    except ConfigError as error:
        return str(error)
    return None


def go(path: str, ranks: int, *overrides: str, kill_after: int | None = None) -> dict[int, list[str]]:
    """Return the rows of each batch that one start of the run trained, merged from its ranks."""
    rows_file = f"{path}.rows{next(_starts)}"
    try:
        refused = run_ranks(run, ranks, path, list(overrides), rows_file, kill_after)
        assert refused == [None] * ranks
        assert kill_after is None
    except RuntimeError:
        assert kill_after is not None
    parts = [json.loads(Path(f"{rows_file}.{rank}").read_text()) for rank in range(ranks)]
    common = set.intersection(*(set(part) for part in parts))
    return {int(n): list(itertools.chain.from_iterable(part[n] for part in parts)) for n in sorted(common, key=int)}


_starts = itertools.count()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_killed_in_each_stage_trains_the_same_rows_on_1_2_and_4_ranks(tmp_path: Path) -> None:
    path = write_curriculum(tmp_path)
    whole = go(path, 1, "run_name=whole")
    assert list(whole) == list(range(14))
    first = go(path, 2, "run_name=killed", kill_after=4)
    assert [found.name for found in checkpoints(tmp_path / "killed")] == ["ep0-ba2"]
    ramp = go(path, 4, "run_name=killed", kill_after=8)
    last = go(path, 1, "run_name=killed", kill_after=12)
    end = go(path, 2, "run_name=killed")
    assert [min(part) for part in (first, ramp, last, end)] == [0, 2, 6, 10]
    for part in (first, ramp, last, end):
        assert part == {batch: rows for batch, rows in whole.items() if batch in part}
    assert max(end) == 13


@pytest.mark.proof
@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_run_killed_anywhere_trains_the_same_rows_on_any_ranks_workers_and_microbatches(tmp_path, ranks, num_workers):
    path = write_curriculum(tmp_path)
    whole = go(path, 1, "run_name=whole")
    for kill_after in (3, 4, 5, 6, 8, 9, 10, 12, 13):
        name = f"run_name=killed{kill_after}"
        first = go(path, 2, name, "save_interval=1ba", kill_after=kill_after)
        cut = f"device_train_microbatch_size={1 + kill_after % 2}"
        rest = go(path, ranks, name, "save_interval=1ba", f"train_loader.num_workers={num_workers}", cut)
        assert max(first) + 1 >= min(rest) >= kill_after - 1
        assert max(rest) == 13
        for part in (first, rest):
            assert part == {batch: rows for batch, rows in whole.items() if batch in part}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_changes_of_later_stages_are_applied_and_of_earlier_stages_refused(tmp_path: Path) -> None:
    path = write_curriculum(tmp_path)
    rows = go(path, 1, "run_name=changed", kill_after=8)
    longer = go(path, 1, "run_name=changed", "max_duration=16ba", "train_loader.stages.2.proportions={code: 1.0}")
    assert list(longer) == list(range(6, 16))
    assert {row[:2] for batch in range(9, 16) for row in longer[batch]} == {"1:"}
    given = [row for batch in sorted(rows | longer) for row in (rows | longer)[batch] if row.startswith("1:")]
    once = len(set(given))
    assert len(given) > once
    assert len(set(given[:once])) == once
    errors = run_ranks(
        run, 1, path, ["run_name=changed", "max_duration=20ba", "train_loader.stages.0.duration=6ba"], "x"
    )
    assert "train_loader.stages[0].duration was 5ba, now 6ba (the stage is completed)" in str(errors[0])


@pytest.mark.timeout(200)
def test_contributions_and_losses_of_streams_are_logged(tmp_path: Path) -> None:
    path = write_curriculum(tmp_path)
    logged = run_ranks(logged_metrics, 2, path, ["run_name=logged", "model.resid_pdrop=0.0"])[0]
    assert list(logged) == list(range(14))
    names = ("web", "code", "math")
    so_far = [0.0, 0.0, 0.0]
    for batch, metrics in logged.items():
        shares = [metrics[f"streams/{name}/share"] for name in names]
        planned = [metrics[f"streams/{name}/planned_share"] for name in names]
        assert sum(shares) == pytest.approx(1)
        before, so_far = so_far, [metrics[f"streams/{name}/tokens"] for name in names]
        tokens = [a - b for a, b in zip(so_far, before, strict=True)]
        of_tokens = [metrics[f"streams/{name}/token_share"] for name in names]
        assert of_tokens == pytest.approx([count / sum(tokens) for count in tokens])
        if batch < 5:
            configured = [STAGES[0]["proportions"].get(name, 0.0) for name in names]
            assert [metrics[f"streams/{name}/planned_token_share"] for name in names] == pytest.approx(configured)
        assert all(abs(a - b) <= 3 / 8 for a, b in zip(shares, planned, strict=True))
        by_stream = [
            (metrics[f"streams/{name}/loss"], metrics["trained"][number])
            for number, name in enumerate(names)
            if metrics["trained"][number]
        ]
        mean = sum(loss * count for loss, count in by_stream) / sum(count for _, count in by_stream)
        assert mean == pytest.approx(metrics["loss/train/lm"], rel=1e-5), batch
        assert metrics["lr-factor"] == pytest.approx(0.5 if batch >= 9 else 1.0, rel=0.05)


@pytest.mark.timeout(200)
def test_a_changed_lr_scale_counts_from_the_first_batch_after_a_resume(tmp_path: Path) -> None:
    path = write_curriculum(tmp_path)
    constant = ["run_name=scaled", "scheduler.name=constant_with_warmup", "scheduler.t_warmup=0ba"]
    go(path, 1, *constant, kill_after=4)
    changed = [*constant, "max_duration=10ba", "train_loader.stages.0.lr_scale=0.25"]
    config = read_config(path, changed)
    printed = " ".join("\n".join(describe(open_inputs(config), config)).split())
    assert "stages[0].lr_scale was 1.0, now 0.25 applied: from batch 2 on; earlier batches of this stage" in printed
    assert "the data plan changes at batch 2: stage broad (the current stage): " in printed
    (logged,) = run_ranks(logged_metrics, 1, path, changed)
    assert list(logged) == list(range(2, 10))
    assert [metrics["lr-factor"] for metrics in logged.values()] == pytest.approx([0.25] * 3 + [1.0] * 4 + [0.5])


@pytest.mark.timeout(200)
def test_a_changed_past_is_refused_before_the_model_is_built(tmp_path: Path) -> None:
    path = write_curriculum(tmp_path)
    go(path, 1, "run_name=early", kill_after=4)
    with pytest.raises(
        ConfigError, match=r"seed was 17, now 18 \(the order of rows depends on this key\): restore the old value"
    ):
        find_start(read_config(path, ["run_name=early", "seed=18"]), tmp_path / "early")


class Logged(Callback):
    """Return the metrics of each batch, the trained tokens of each stream, and the factor on the schedule."""

    def __init__(self) -> None:
        self.batches: dict[int, dict[str, Any]] = {}

    def fit_start(self, state: State, logger: Logger) -> None:
        logger.destinations = (*logger.destinations, Collects(self.batches))

    def before_train_batch(self, state: State, logger: Logger) -> None:
        trained = torch.zeros(3, dtype=torch.int64)
        trained.index_add_(0, state.batch["streams"], (state.batch["labels"] != -100).sum(1))
        dist.all_reduce(trained)
        lr = state.optimizers[0].param_groups[0]["lr"]
        self.batches[state.timestamp.batch.value] = {"trained": trained.tolist(), "lr-factor": lr / 3e-3}


class Collects(LoggerDestination):
    def __init__(self, batches: dict[int, dict[str, Any]]) -> None:
        self.batches = batches

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        kept = {key: float(value) for key, value in metrics.items() if key.startswith(("streams/", "loss/train/"))}
        if kept and step is not None:
            # The loss is logged before the clock counts the batch, the metrics of streams after that.
            self.batches[step if any("loss/train" in key for key in kept) else step - 1].update(kept)


def logged_metrics(path: str, overrides: list[str]) -> dict[int, dict[str, Any]]:
    watch = Logged()
    constant = ["scheduler.name=constant_with_warmup", "scheduler.t_warmup=0ba"]
    fit(read_config(path, [*overrides, *constant]), callbacks=[watch])
    return watch.batches
