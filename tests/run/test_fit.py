"""Runs as a user starts them: errors before the first step, files in the save folder, logs."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from composer.core import Callback, State
from composer.loggers import Logger

from data.base.errors import ConfigError, DataError
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from train import main
from train.checkpoint.save_folder import checkpoints
from train.config.load import read_config
from train.run.fit import fit

ROOT = Path(__file__).parents[2]


def run(path: str, overrides: list[str]) -> str | None:
    """Return the error of a run, or None."""
    try:
        fit(read_config(path, overrides))
    except (ConfigError, DataError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def run_each(path: str, cases: list[list[str]]) -> list[str | None]:
    return [run(path, overrides) for overrides in cases]


def frozen(path: str) -> list[int]:
    """Return how many objects the garbage collector scans when main passes the config to fit."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.run.fit.fit", lambda config, **_: found.append(gc.get_freeze_count()))
        assert main.main([path]) == 0
    return found


@pytest.mark.ranks
def test_garbage_collections_skip_imported_objects(tmp_path: Path) -> None:
    (found,) = run_ranks(frozen, 1, write_toy_run(tmp_path))
    # Importing torch, Composer and transformers creates several hundred thousand objects.
    assert len(found) == 1
    assert found[0] > 100_000


@pytest.mark.ranks
def test_errors_before_the_first_step(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    (tmp_path / "few.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (tmp_path / "bad.jsonl").write_text(
        '{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": 3}\n{"prompt":\n'
    )
    (tmp_path / "blank.jsonl").write_text("")
    (tmp_path / "a_file").write_text("")
    cases = {
        "max_duration=2ba save_folder=A_FILE/x": "save_folder A_FILE/x cannot be written: Not a directory",
        "load_path=nowhere": "load_path is 'nowhere', which does not exist",
        "load_path=A_FILE": "but it is not a complete checkpoint",
        "model.vocab_size=200": "model.vocab_size is 200, but the tokenizer has",
        "save_folder=azure://bucket/x": "save_folder is 'azure://bucket/x', but the supported object stores",
        "save_folder='{name}/x'": "the only placeholder is {run_name}",
        "train_loader.dataset.hf_kwargs.data_files=FOLDER/few.jsonl": "but one global batch has 8",
        "train_loader.dataset.hf_kwargs.data_files=FOLDER/bad.jsonl": "bad.jsonl",
        "train_loader.dataset.hf_kwargs.data_files=FOLDER/blank.jsonl": "blank.jsonl",
        "train_loader.dataset.preprocessing_fn=alpacca": "train_loader.dataset.preprocessing_fn is 'alpacca'",
        "tokenizer.kwargs.vocab_file=FOLDER/none": "tokenizer.kwargs.vocab_file is 'FOLDER/none'",
        "optimizer.freeze=['*.nothing']": "optimizer.freeze has '*.nothing'",
        "scheduler.t_warmup=99ba": "scheduler.t_warmup is 99ba",
        "loggers.file.filename='{name}.txt'": "the only placeholders are {run_name} and {rank}",
        "loggers.file.filename=A_FILE/x.txt": "loggers.file.filename is 'A_FILE/x.txt', but it cannot be written",
    }

    def place(text: str) -> str:
        return text.replace("A_FILE", str(tmp_path / "a_file")).replace("FOLDER", str(tmp_path))

    errors = run_ranks(run_each, 1, path, [place(case).split(" ") for case in cases])[0]
    for (case, expected), text in zip(cases.items(), errors, strict=True):
        assert text is not None, case
        assert place(expected) in text, text
    assert checkpoints(tmp_path / "toy") == []


@pytest.mark.ranks
def test_a_save_folder_is_complete_in_itself_and_guarded(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    again = [["max_duration=2ba", *extra] for extra in ([], [], ["save_overwrite=true", "seed=3"])]
    first, second, third = run_ranks(run_each, 1, path, again)[0]
    assert first is None
    assert second is not None
    assert "contains 1 checkpoint(s), the newest ep0-ba2: set autoresume=true" in second
    assert third is None
    folder = tmp_path / "toy"
    assert {"config.yaml", "tokenizer", "ep0-ba2"} <= {entry.name for entry in folder.iterdir()}
    assert read_config(str(folder / "config.yaml")).seed == 3
    assert json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]["type"] == "BPE"


@pytest.mark.ranks
def test_a_changed_past_is_refused_and_leaves_the_save_folder_as_it_was(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    first = str(tmp_path / "toy/ep0-ba2")
    expected_errors = {
        "autoresume=true seed=5": "seed was 17, now 5",
        "autoresume=true global_train_batch_size=4": "global_train_batch_size was 8, now 4",
        "autoresume=true model.attn_config.rope_theta=777": "model.attn_config.rope_theta was 500.0, now 777.0",
        "autoresume=true model.n_layers=1": "model.n_layers was 2, now 1 (the checkpoint's tensors have",
        "autoresume=true model.d_model=64": "model.d_model was 32, now 64",
        "autoresume=true optimizer.name=sgd": "optimizer.name was adamw, now sgd",
        "save_overwrite=true optimizer.freeze=['*.nothing']": "optimizer.freeze has '*.nothing'",
        f"save_overwrite=true load_path={first}": "which save_overwrite would delete",
        f"run_name=other load_path={first} model.n_layers=3": "model.n_layers was 2, now 3",
    }
    cases = [["max_duration=2ba"], *(case.split(" ") for case in expected_errors)]
    done, *refusals = run_ranks(run_each, 1, path, cases)[0]
    assert done is None
    for (case, expected), text in zip(expected_errors.items(), refusals, strict=True):
        assert text is not None, case
        assert expected in text, text
    assert [found.name for found in checkpoints(tmp_path / "toy")] == ["ep0-ba2"]
    kept = read_config(str(tmp_path / "toy" / "config.yaml"))
    assert (kept.seed, kept.model.attn_config.rope_theta, kept.model.n_layers) == (17, 500.0, 2)


@pytest.mark.ranks
def test_another_run_can_start_from_weights_only(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    tuned = [f"load_path={tmp_path / 'toy/ep0-ba2'}", "load_weights_only=true", "seed=5", "run_name=tuned"]
    tuned += ["max_duration=2ba", "optimizer.name=sgd", "model.attn_config.rope_theta=777"]
    assert run_ranks(run_each, 1, path, [["max_duration=2ba"], tuned])[0] == [None, None]


class Rates(Callback):
    def __init__(self) -> None:
        self.rates: list[float] = []

    def batch_start(self, state: State, logger: Logger) -> None:
        self.rates.append(state.optimizers[0].param_groups[0]["lr"])


def rates(path: str, cases: list[list[str]]) -> list[list[float]]:
    found = []
    for overrides in cases:
        watch = Rates()
        fit(read_config(path, overrides), callbacks=[watch])
        found.append(watch.rates)
    return found


@pytest.mark.ranks
def test_a_resume_applies_new_optimizer_settings_and_retention(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    common = ["scheduler.name=constant_with_warmup", "scheduler.t_warmup=0ba", "save_interval=1ba"]
    common += ["save_num_checkpoints_to_keep=2", "autoresume=true"]
    cases = [[*common, "max_duration=3ba"], [*common, "max_duration=5ba", "optimizer.lr=1e-5"]]
    assert run_ranks(rates, 1, path, cases)[0] == [[3e-3] * 3, [1e-5] * 2]
    assert [found.name for found in checkpoints(tmp_path / "toy")] == ["ep0-ba4", "ep0-ba5"]


@pytest.mark.ranks
@pytest.mark.timeout(240)
def test_every_optimizer_trains_sharded_with_frozen_units(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    common = ["max_duration=2ba", "save_folder=null", "eval_loader=null"]
    cases = [[*common, f"optimizer.name={name}"] for name in ("adamw", "decoupled_adamw", "decoupled_lionw", "sgd")]
    cases += [
        [*common, f"optimizer.freeze=[{frozen}]"] for frozen in ("'*.wte.weight','*.blocks.0.*'", "'*.experts.*'")
    ]
    cases += [[*common, "algorithms.gradient_clipping.clipping_type=value", "fsdp_config.activation_cpu_offload=true"]]
    assert run_ranks(run_each, 2, path, cases)[0] == [None] * len(cases)


LOGGED = [
    "loss/train/total",
    "loss/train/load_balancing",
    "metrics/eval/LanguagePerplexity",
    "metrics/eval/LanguageTokenAccuracy",
    "lr-AdamW/group0",
]
LOGGED += ["throughput/tokens_per_sec", "time/remaining_estimate"]


@pytest.mark.slow
@pytest.mark.subprocess
@pytest.mark.timeout(240)
def test_the_launcher_runs_two_ranks_and_the_loggers_log(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    log = tmp_path / "logs" / "{run_name}-{rank}.txt"
    command = [str(Path(sys.executable).parent / "composer"), "-n", "2", str(ROOT / "train.py"), path]
    command += [
        "max_duration=3ba",
        "eval_interval=3ba",
        f"loggers={{file: {{filename: '{log}'}}, tensorboard: {{log_dir: {tmp_path / 'tb'}}}}}",
    ]
    command += ["loggers.wandb={project: p}", "log_to_console=true"]
    command += ["callbacks={lr_monitor: {}, speed_monitor: {window_size: 1}, runtime_estimator: {}}"]
    env = {**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    logged = (tmp_path / "logs" / "toy-0.txt").read_text()
    assert [key for key in LOGGED if key not in logged] == []
    assert list((tmp_path / "tb").rglob("events*"))
    assert list(tmp_path.glob("wandb/offline-run-*"))
    for line in (
        "precision      fp32 (amp_bf16 becomes fp32 on CPU)",
        "experts        torch",
        "attention      sdpa (not",
    ):
        assert done.stdout.count(f"\n{line}") == 1
    assert "UserWarning" not in done.stderr
