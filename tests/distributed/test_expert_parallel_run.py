"""A whole run with expert parallelism: training, evaluation and generation, as on one rank."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data.tokenization.build import build_tokenizer
from tests.helpers.exact_run import ExactRun, exact_run
from tests.helpers.expert_parallel import difference
from tests.helpers.generated import generated_tables
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from train.config.load import read_config

PROMPTS = ["amber birch\n", "x", "y" * 120]
"""The last prompt leaves room for fewer tokens than the others."""
OVERRIDES = [
    *["max_duration=2ba", "eval_interval=1ba", "save_folder=null"],
    # Every step is clipped, and SGD does not hide the effect.
    *["optimizer={name: sgd, lr: 0.5}", "algorithms.gradient_clipping.clipping_threshold=0.1"],
    f"callbacks.generate={{prompts: {json.dumps(PROMPTS)}, interval: 1ba, max_new_tokens: 10}}",
]


def run(path: str, overrides: list[str]) -> ExactRun:
    return exact_run(path, [*OVERRIDES, *overrides])


def run_that_would_end_early(path: str, overrides: list[str]) -> ExactRun:
    """All ranks but the first would choose a stop token as the first token."""
    from composer.utils import dist

    stop = min(build_tokenizer(read_config(path, []).tokenizer).stop_token_ids)

    def choose_stop(logits_BV: Tensor, *_: object) -> Tensor:
        return torch.full((len(logits_BV),), stop)

    with pytest.MonkeyPatch.context() as patch:
        if dist.get_global_rank() > 0:
            patch.setattr("train.generation.generate.choose", choose_stop)
        return run(path, overrides)


@pytest.mark.ranks
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_run_trains_evaluates_and_generates_as_on_one_rank(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)

    def logged(name: str) -> str:
        return f"loggers.file.filename={tmp_path}/{name}/log-rank{{rank}}.txt"

    (expected,) = run_ranks(run, 1, path, ["fsdp_config=null", logged("one")])
    changes = ["fsdp_config={expert_parallel_degree: 2, activation_checkpointing: block}", logged("two")]
    both = run_ranks(run_that_would_end_early, 2, path, changes)

    texts = generated_tables(tmp_path / "one")
    assert [len(table) for table in texts] == [3, 3]
    for table in texts:
        assert len({len(text.encode()) for _, _, text in table}) > 1, "all texts have the same length"
    assert generated_tables(tmp_path / "two") == texts
    for mine in both:
        assert list(mine.losses) == [1, 2]
        assert mine.losses == pytest.approx(expected.losses, rel=1e-10)
        assert list(mine.eval_metrics) == [1, 2]
        for batch, metrics in expected.eval_metrics.items():
            assert mine.eval_metrics[batch] == pytest.approx(metrics, rel=1e-10)
        assert difference(mine.weights, expected.weights) <= 1e-10
