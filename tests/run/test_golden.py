"""Later versions read and resume the prepared rows and the checkpoint of an earlier version (d772cc7).

tests/golden was written once, with two commands in the root of the project, and must not change:
  python scripts/convert_finetuning_dataset.py --dataset tests/golden/train.jsonl --skip-preprocessing --splits train \
      --out_root tests/golden/rows --max_seq_len 64 --tokenizer tiktoken \
      --tokenizer_kwargs '{"vocab_file": "tests/golden/vocab.tiktoken"}'
  composer -n 2 train.py tests/golden/config.yaml     (the checkpoint after batch 8 was removed)
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from composer.core import Callback, State
from composer.loggers import Logger

from data.config.dataset import DatasetConfig
from data.config.source import HFKwargs
from data.config.tokenizer import TokenizerConfig, TokenizerKwargs
from data.loading.opening import open_streams
from data.loading.rows import Rows
from data.tokenization.build import build_tokenizer
from data.tokenization.tokenizer import Tokenizer
from tests.helpers.ranks import run_ranks
from train.config.load import read_config
from train.run.fit import fit

GOLDEN = Path(__file__).parents[1] / "golden"


class Losses(Callback):
    def __init__(self) -> None:
        self.of_batch: dict[int, float] = {}

    def batch_end(self, state: State, logger: Logger) -> None:
        self.of_batch[state.timestamp.batch.value] = state.total_loss_dict["loss/train/total"]


def resumed(overrides: list[str]) -> dict[int, float]:
    losses = Losses()
    fit(read_config(str(GOLDEN / "config.yaml"), overrides), callbacks=[losses])
    return losses.of_batch


@pytest.mark.ranks
@pytest.mark.parametrize(("world_size", "degree"), [(1, 1), (2, 2)], ids=["1 rank", "EP 2"])
def test_a_checkpoint_of_an_earlier_version_resumes(tmp_path: Path, world_size: int, degree: int) -> None:
    for name in ("rows", "run"):
        shutil.copytree(GOLDEN / name, tmp_path / name)
    overrides = [
        "autoresume=true",
        f"save_folder={tmp_path / 'run'}",
        f"train_loader.dataset.local={tmp_path / 'rows' / 'train'}",
        f"tokenizer.kwargs.vocab_file={GOLDEN / 'vocab.tiktoken'}",
        f"fsdp_config.expert_parallel_degree={degree}",
    ]
    losses = run_ranks(resumed, world_size, overrides)[0]
    expected = json.loads((GOLDEN / "expected.json").read_text())["losses"]
    assert list(losses) == [5, 6, 7, 8]
    # Stored with 4 digits, because rounding differs between processors and versions of torch.
    assert list(losses.values()) == pytest.approx(expected[4:], abs=5e-4)


def open_rows(tokenizer: Tokenizer, **source: object) -> Rows:
    return open_streams(DatasetConfig(max_seq_len=64, **source), tokenizer)[""]


def test_rows_of_an_earlier_version_are_read_and_prepared_alike(tmp_path: Path) -> None:
    kwargs = TokenizerKwargs(vocab_file=str(GOLDEN / "vocab.tiktoken"))
    tokenizer = build_tokenizer(TokenizerConfig(name="tiktoken", kwargs=kwargs))
    shutil.copytree(GOLDEN / "rows", tmp_path / "rows")
    then = open_rows(tokenizer, local=str(tmp_path / "rows" / "train"))
    files = HFKwargs(data_files=str(GOLDEN / "train.jsonl"))
    now = open_rows(tokenizer, hf_name="json", hf_kwargs=files, cache_dir=str(tmp_path / "cache"))
    assert (then.n_rows, then.tokens, then.trained_tokens) == (now.n_rows, now.tokens, now.trained_tokens)
    assert then.n_rows == 78
    for row in range(then.n_rows):
        one, other = then.read(row), now.read(row)
        for field in ("tokens", "loss_mask", "lengths"):
            assert np.array_equal(getattr(one, field), getattr(other, field)), f"{field} of row {row}"
