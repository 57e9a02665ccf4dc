"""Runs that start from the weights of a stock folder."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from composer.core import Callback, State
from composer.loggers import Logger
from safetensors.torch import load_file, save_file

from data.base.errors import ConfigError
from data.mds.row import IGNORED
from tests.helpers.ranks import run_ranks
from tests.helpers.stock_folder import write_stock_folder
from tests.helpers.toy_run import refused, write_toy_run
from train import main
from train.checkpoint.save_folder import checkpoints
from train.config.load import load_config, load_saved_config, read_config
from train.run.fit import fit
from train.run.inputs import open_inputs
from train.run.model import build_model


class Evaluated(Callback):
    """Records the evaluated batches and the first evaluation loss."""

    def __init__(self) -> None:
        self.rows: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.loss: float | None = None

    def eval_batch_start(self, state: State, logger: Logger) -> None:
        if self.loss is None:
            self.rows.append((state.batch["input_ids"], state.batch["labels"]))

    def eval_end(self, state: State, logger: Logger) -> None:
        if self.loss is None:
            self.loss = float(state.eval_metric_values["LanguageCrossEntropy"])


def evaluate_first(path: str, overrides: list[str]) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], float | None]:
    evaluated = Evaluated()
    fit(read_config(path, overrides), callbacks=[evaluated])
    return evaluated.rows, evaluated.loss


@pytest.fixture
def toy(tmp_path: Path) -> tuple[str, list[str]]:
    """The YAML of a run, and the overrides to start from tmp_path/stock."""
    overrides = [
        f"model={{pretrained_model_name_or_path: {tmp_path / 'stock'}}}",
        "max_duration=2ba",
        "save_interval=1ba",
    ]
    # One document per row, because transformers does not separate packed documents.
    overrides += ["eval_first=true", "eval_loader.dataset.packing=none"]
    return write_toy_run(tmp_path), overrides


@pytest.mark.ranks
@pytest.mark.timeout(300)
def test_the_first_evaluation_equals_that_of_transformers(tmp_path: Path, toy: tuple[str, list[str]]) -> None:
    stock = write_stock_folder(tmp_path / "stock", vocab_size=320, max_seq_len=128)
    ranks = run_ranks(evaluate_first, 2, *toy, timeout=240)
    loss_sum = n_tokens = 0.0
    with torch.no_grad():
        for ids, labels in (row for rows, _ in ranks for row in rows):
            losses = F.cross_entropy(stock(ids).logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="sum")
            loss_sum, n_tokens = loss_sum + losses.item(), n_tokens + (labels != IGNORED).sum().item()
    assert n_tokens > 100
    assert [loss for _, loss in ranks] == pytest.approx([loss_sum / n_tokens] * 2, rel=1e-5)
    # The files beside the checkpoints do not depend on the folder.
    (tmp_path / "stock").rename(tmp_path / "gone")
    saved = checkpoints(tmp_path / "toy")
    assert len(saved) == 2
    assert load_saved_config(saved[0].parent / "config.yaml").model.d_model == 32
    # A resume needs only the folder's config.json, a new run also its weights.
    (tmp_path / "stock").mkdir()
    (tmp_path / "gone" / "config.json").rename(tmp_path / "stock" / "config.json")
    path, overrides = toy
    open_inputs(read_config(path, [*overrides, "autoresume=true", "max_duration=3ba"]))
    with pytest.raises(ConfigError, match="it has no safetensors files"):
        open_inputs(read_config(path, [*overrides, "save_overwrite=true"]))


def test_an_invalid_folder_is_reported_before_the_model_is_built(
    tmp_path: Path, toy: tuple[str, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_far(*args: object, **kwargs: object) -> None:
        raise AssertionError("the run was begun")

    monkeypatch.setattr("train.run.fit.fit", too_far)
    path, overrides = toy
    write_stock_folder(tmp_path / "stock", vocab_size=320, max_seq_len=128)
    next((tmp_path / "stock").glob("*.safetensors")).unlink()
    capsys.readouterr()
    assert main.main([path, *overrides]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith(
        f"error: command line: model.pretrained_model_name_or_path is '{tmp_path / 'stock'}', but some files"
    )
    assert "\n" not in message


@pytest.mark.ranks
def test_weights_that_are_not_finite_are_reported_on_every_rank(tmp_path: Path, toy: tuple[str, list[str]]) -> None:
    write_stock_folder(tmp_path / "stock", vocab_size=320, max_seq_len=128)
    places = {}
    # Each in the rows of a single rank.
    for name, row, value in (("transformer.wte.weight", 0, -torch.inf), ("lm_head.weight", 319, torch.nan)):
        for file in (tmp_path / "stock").glob("*.safetensors"):
            tensors = load_file(file)
            if name in tensors:
                tensors[name][row, 3], places[name] = value, file.name
                save_file(tensors, file, {"format": "pt"})
    one, other = run_ranks(refused, 2, *toy)
    assert one == other
    assert one == (
        f"model.pretrained_model_name_or_path is '{tmp_path / 'stock'}', but there are NaN or infinite numbers in its "
        f"weights: transformer.wte.weight in {places['transformer.wte.weight']}; lm_head.weight in "
        f"{places['lm_head.weight']}: download the weights again, or specify weights whose training did not diverge"
    )
    assert not (tmp_path / "toy").exists()


class Diverged:
    """A frozen base with one weight that is not finite."""

    def __contains__(self, name: str) -> bool:
        return name == "lm_head.weight"

    def rows(self, name: str, start: int, stop: int, out: torch.Tensor) -> None:
        out.fill_(torch.inf)


def test_weights_of_a_checkpoint_that_are_not_finite_are_reported_on_every_rank(tmp_path: Path) -> None:
    config = load_config(write_toy_run(tmp_path), ["fsdp_config=null"]).config
    inputs = replace(open_inputs(config), weights=Diverged())
    config = replace(config, load_path="runs/a/ep0-ba5")
    with pytest.raises(
        ConfigError, match=r"load_path is 'runs/a/ep0-ba5', but .* in its weights: lm_head.weight: specify"
    ):
        build_model(config, inputs, precision="fp32", device=torch.device("cpu"), dtype=torch.float32)
