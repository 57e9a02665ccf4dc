"""Runs as a user starts them: what is refused before the first step, what stays in the save folder, what is logged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ranks import run_ranks
from toy_run import write_toy_run

from data.errors import ConfigError, DataError
from train.checkpoint import checkpoints
from train.fit import fit
from train.reader import load_config

ROOT = Path(__file__).parent.parent


def run(path: str, overrides: list[str]) -> str | None:
    """The refusal of a run, or None."""
    try:
        fit(load_config(path, overrides))
    except (ConfigError, DataError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def run_each(path: str, cases: list[list[str]]) -> list[str | None]:
    return [run(path, overrides) for overrides in cases]


def test_what_is_refused_before_the_first_step(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    (tmp_path / "few.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (tmp_path / "bad.jsonl").write_text(
        '{"prompt": "a", "response": "b"}\n{"prompt": "a", "response": 3}\n{"prompt":\n'
    )
    (tmp_path / "blank.jsonl").write_text("")
    (tmp_path / "a_file").write_text("")
    cases = {
        "max_duration=1ba save_folder=A_FILE/x": "save_folder A_FILE/x cannot be written: Not a directory",
        "load_path=nowhere": "load_path is 'nowhere', but there is no such file or folder",
        "load_path=A_FILE": "but it is no complete checkpoint",
        "model.vocab_size=200": "model.vocab_size is 200, but the tokenizer has",
        "save_folder=s3://bucket/x": "save_folder is 's3://bucket/x', but checkpoints are written to a local",
        "save_folder='{name}/x'": "only {run_name} is filled in",
        "autoresume=true run_name=null": "autoresume is true, but without run_name",
        "train_loader.dataset.hf_kwargs.data_files=FOLDER/few.jsonl": "but one global batch has 8",
        "train_loader.dataset.hf_kwargs.data_files=FOLDER/bad.jsonl": "bad.jsonl",
        "train_loader.dataset.hf_kwargs.data_files=FOLDER/blank.jsonl": "blank.jsonl",
        "train_loader.dataset.preprocessing_fn=alpacca": "train_loader.dataset.preprocessing_fn is 'alpacca'",
        "tokenizer.kwargs.vocab_file=FOLDER/none": "tokenizer.kwargs.vocab_file is 'FOLDER/none'",
        "optimizer.freeze=['*.nothing']": "optimizer.freeze has '*.nothing'",
        "scheduler.t_warmup=99ba": "scheduler.t_warmup is 99ba",
    }

    def place(text: str) -> str:
        return text.replace("A_FILE", str(tmp_path / "a_file")).replace("FOLDER", str(tmp_path))

    told = run_ranks(run_each, 1, path, [place(case).split(" ") for case in cases])[0]
    for (case, expected), text in zip(cases.items(), told, strict=True):
        assert text is not None, case
        assert place(expected) in text, text
    assert checkpoints(tmp_path / "toy") == []


def test_a_save_folder_is_complete_in_itself_and_guarded(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    again = [["max_duration=2ba", *extra] for extra in ([], [], ["save_overwrite=true", "seed=3"])]
    first, second, third = run_ranks(run_each, 1, path, again)[0]
    assert first is None
    assert second is not None
    assert "holds 1 checkpoint(s), the newest ep0-ba2: write autoresume=true" in second
    assert third is None
    folder = tmp_path / "toy"
    assert {"config.yaml", "tokenizer", "ep0-ba2"} <= {entry.name for entry in folder.iterdir()}
    assert load_config(str(folder / "config.yaml")).seed == 3
    assert json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]["type"] == "BPE"


def test_a_changed_past_is_refused(tmp_path: Path) -> None:
    path = write_toy_run(tmp_path)
    cases = [["max_duration=2ba"], ["autoresume=true", "seed=5"], ["load_path=" + str(tmp_path / "toy/ep0-ba2")]]
    cases[2] += ["load_weights_only=true", "seed=5", "run_name=tuned", "max_duration=2ba"]
    _, changed, tuned = run_ranks(run_each, 1, path, cases)[0]
    assert changed is not None
    assert "seed was 17, now 5" in changed
    assert tuned is None


LOGGED = ["loss/train/total", "loss/train/load_balancing", "metrics/eval/LanguagePerplexity", "lr-AdamW/group0"]
LOGGED += ["throughput/tokens_per_sec", "time/remaining_estimate"]


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
    assert done.stdout.count("precision: amp_bf16 becomes fp32 on CPU") == 1
    assert "UserWarning" not in done.stderr
