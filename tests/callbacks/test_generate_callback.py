"""Generation during training uses the current weights and does not change the training."""

import json
from pathlib import Path

import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from torch.distributed.tensor import DTensor

from data.base.errors import ConfigError
from tests.helpers.generated import generated_tables
from tests.helpers.open_here import open_here
from tests.helpers.ranks import run_ranks
from tests.helpers.small_config import refusal
from tests.helpers.toy_run import write_toy_run
from train.config.load import read_config
from train.config.sampling import Sampling
from train.generation.ask import ask
from train.generation.questions import as_question, encode
from train.run.fit import fit

PROMPTS = ["amber birch\n", "x"]
GENERATE = f"callbacks.generate={{prompts: {json.dumps(PROMPTS)}, interval: 4ba, max_new_tokens: 12}}"


class AtTheEnd(Callback):
    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}

    def fit_end(self, state: State, logger: Logger) -> None:
        for name, param in state.model.named_parameters():
            whole = param.full_tensor() if isinstance(param, DTensor) else param
            self.weights[name.removeprefix("module.")] = whole.detach().clone()


def run(path: str, overrides: list[str]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the weights and the random state at the end."""
    end = AtTheEnd()
    fit(read_config(path, overrides), callbacks=[end])
    return end.weights, torch.get_rng_state()


def written_by(checkpoint: Path, sampling: Sampling) -> list[str]:
    opened = open_here(checkpoint)
    prompts = encode([as_question(prompt) for prompt in PROMPTS], opened, sampling)
    return [answer.text for answer in ask(opened, prompts, sampling, 2)]


@pytest.mark.ranks
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("fsdp", "drawn"),
    [("fsdp_config={activation_checkpointing: selective}", "temperature: 0.9, seed: 3"), ("fsdp_config=null", "")],
    ids=["FSDP2, sampled", "DDP, greedy"],
)
def test_generation_uses_the_weights_and_does_not_change_training(tmp_path, fsdp, drawn):
    path = write_toy_run(tmp_path)
    changes = [
        f"loggers.file.filename={tmp_path}/generating/log-rank{{rank}}.txt",
        fsdp,
        GENERATE.replace("max_new", f"{drawn}, max_new" if drawn else "max_new"),
    ]
    plain = run_ranks(run, 2, path, [fsdp, "run_name=plain"])
    generating = run_ranks(run, 2, path, [*changes, "run_name=generating"])
    for (weights, rng), (expected, expected_rng) in zip(generating, plain, strict=True):
        assert torch.equal(rng, expected_rng)
        assert weights.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(weights[name], tensor), name
    shown = generated_tables(tmp_path / "generating")
    assert [[row[:2] for row in table] for table in shown] == [
        [[batch, prompt] for prompt in PROMPTS] for batch in (4, 8, 10)
    ]
    if fsdp != "fsdp_config=null":
        sampling = Sampling(max_new_tokens=12, temperature=0.9, seed=3)
        for table, checkpoint in zip(shown, ("ep0-ba4", "ep0-ba8", "ep0-ba10"), strict=True):
            assert [row[2] for row in table] == written_by(tmp_path / "generating" / checkpoint, sampling)


@pytest.mark.parametrize(
    ("generate", "message"),
    [
        ("{prompts: []}", "callbacks.generate.prompts is [], but at least 1 prompt is required"),
        (
            "{prompts: [a], interval: 0ba}",
            "callbacks.generate.interval is '0ba', but it must be longer than 0",
        ),
        ("{prompts: [a], interval: often}", "callbacks.generate.interval "),
        (
            "{prompts: [a], top_k: 3}",
            "callbacks.generate.temperature is 0 (greedy decoding), but top_k or top_p is set",
        ),
        ("{prompts: [a], max_new_tokens: 0}", "callbacks.generate.max_new_tokens is 0"),
        ("{prompts: [a], every: 3}", "callbacks.generate.every is not a key"),
        ("{interval: 1ba}", "missing: callbacks.generate.prompts"),
    ],
)
def test_invalid_settings_are_refused(tmp_path, generate, message):
    assert message in refusal(tmp_path, f"callbacks.generate={generate}")


def test_the_error_for_llm_foundrys_name_names_ours(tmp_path):
    message = refusal(tmp_path, "callbacks.generate_callback={prompts: [a]}")
    assert "callbacks.generate_callback is not supported: use `generate: {prompts: [...]" in message


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", r"callbacks.generate.prompts\[1\] is '', but a prompt must have at least 1 character"),
        ("y" * 128, r"callbacks.generate.prompts\[1\] is 'yyy.* has 128 tokens, but model.max_seq_len is 128"),
    ],
)
def test_a_prompt_that_nothing_can_follow_is_refused_before_the_model_is_built(tmp_path, monkeypatch, prompt, message):
    path = write_toy_run(tmp_path)
    monkeypatch.setattr("train.run.model.sharded.build_model", lambda *args, **kwargs: pytest.fail("it was built"))
    changes = [f"callbacks.generate.prompts=[a, '{prompt}']", "model.max_seq_len=128", "run_name=x"]
    with pytest.raises(ConfigError, match=message):
        fit(read_config(path, changes))
