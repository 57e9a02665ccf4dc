"""The quickstart: train the tiny DBRX, export it, and use transformers to answer questions that were not in the
training data."""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from data.base.errors import ConfigError
from train.config.schema import TrainConfig
from train.console.facts import WIDTH, command_fact, fact
from train.console.warnings import silence_expected_warnings, silence_transformers
from train.generation.decoders import TransformersDecoder
from train.generation.exact_match import exact_match, exact_match_result
from train.generation.open_model import open_model
from train.generation.questions import question_text, read_questions
from train.generation.results import keep
from train.hardware.device import Device, choose_device
from train.models.dbrx import DbrxForCausalLM
from train.models.init import initialise
from train.report.reading.find import find_run
from train.report.reading.metrics import Metrics, read_metrics

ROOT = Path(__file__).resolve().parents[2]


_OF_LAUNCHER = "Waiting up to 30 seconds for all training processes to terminate."
"""The last line that Composer's launcher prints for every run."""


def run(*command: str) -> None:
    """Run a command in the root folder of this project. Raises ConfigError if the command fails; the command itself
    prints the reason."""
    print(f"\n$ {' '.join(command)}", flush=True)
    program = [str(Path(sys.executable).parent / command[0]), *command[1:]]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            _show(process.stdout)
        except KeyboardInterrupt:  # the command also receives SIGINT, saves a checkpoint, and ends
            _show(process.stdout)
            raise
    if process.returncode:
        raise ConfigError(f"`{' '.join(command)}` ended with exit code {process.returncode}")


def _show(lines: Iterable[str]) -> None:
    for line in lines:
        if not line.startswith(_OF_LAUNCHER):
            print(line, end="", flush=True)


def kinds(path: Path) -> list[str]:
    """Return the kind of task of each question."""
    return [json.loads(line)["task"] for line in path.read_text(encoding="utf-8").splitlines()]


def untrained(folder: Path, config: TrainConfig) -> PreTrainedModel:
    """Return the model with its initial weights as a transformers model."""
    ours = DbrxForCausalLM(config.model)
    initialise(ours, config.model, config.seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.load_state_dict(ours.state_dict())
    return model.eval()


def examine(folder: Path, config: TrainConfig, heldout: Path, device: Device) -> dict[str, dict[str, Any]]:
    """Return the results for each kind of task and for `all`: the number of questions, the number of exact answers
    before and after training, and an example."""
    asked = read_questions(heldout, with_answers=True)
    trained = open_model(folder, device, "fp32")
    first = replace(trained, decoder=TransformersDecoder(untrained(folder, config), trained.tokenizer.pad_token_id))
    before, after = (exact_match(opened, asked, batch_size=50) for opened in (first, trained))
    results: dict[str, dict[str, Any]] = {}
    for task, early, last in zip(kinds(heldout), before, after, strict=True):
        example = f"{question_text(last.question).strip()} -> {last.answer}"
        for kind in (task, "all"):
            result = results.setdefault(kind, {"asked": 0, "before": 0, "after": 0, "example": example})
            result["asked"] += 1
            result["before"] += early.exact
            result["after"] += last.exact
    results["all"]["example"] = ""
    keep(folder, {heldout.name: exact_match_result(after)}, "fp32")
    return dict(sorted(results.items(), key=lambda item: (item[0] == "all", item[0])))


def show(results: dict[str, dict[str, Any]], metrics: Metrics, folder: Path, seconds: float | None) -> None:
    """Print the table of results and suggestions for what to do next."""
    table = Table("held-out questions", "asked", "before", "after", "for example", box=box.SIMPLE, title_justify="left")
    table.title = "Answered exactly"
    for kind, result in results.items():
        # Round down, so that 100% means that all answers are exact.
        share = f"{result['after']} ({100 * result['after'] // result['asked']}%)"
        table.add_row(kind, str(result["asked"]), str(result["before"]), share, result["example"])
    Console(width=WIDTH, highlight=False).print(table)
    for line in _facts(metrics, folder, seconds):
        print(line)


def _facts(metrics: Metrics, folder: Path, seconds: float | None) -> Iterator[str]:
    losses, speed = metrics.series.get("metrics/eval/LanguageCrossEntropy"), metrics.last("throughput/tokens_per_sec")
    if losses is not None:
        yield fact("held-out loss", f"{losses.values[0]:.3f} before, {losses.last:.3f} after")
    if speed is not None:
        yield fact("speed", f"{speed:,.0f} tokens per second on all ranks")
    if seconds is not None:
        yield fact("time", f"{seconds:.0f} s in total")
    shown = folder.relative_to(ROOT)
    yield fact("model", f"{shown}: load it with transformers.AutoModelForCausalLM.from_pretrained")
    yield command_fact("ask the model", f".venv/bin/python scripts/generate.py {shown} $'Reverse: dropless\\n'")
    yield fact("your data", "lines of {prompt, response}: train_loader.dataset.hf_kwargs.data_files=my.jsonl")
    yield fact("", "run_name=mine eval_loader=null")
    yield command_fact("132B model", ".venv/bin/python scripts/plan.py yamls/finetune/dbrx.yaml")


def n_ranks(device: Device) -> int:
    """Return the number of ranks: 2, or 1 on a machine with a single GPU."""
    return 2 if device == "cpu" else min(2, torch.cuda.device_count())


def quickstart(config_path: str, config: TrainConfig, overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Train the model, export it, and ask the questions. If an earlier call has exported the model, only the questions
    are asked again. config already includes the overrides."""
    silence_expected_warnings()
    silence_transformers()
    device = choose_device(config.device)
    ranks = str(n_ranks(device))
    started = time.monotonic()
    home = ROOT / "runs" / str(config.run_name)
    folder = home / "hf"
    done = folder.exists()
    if done:
        print(f"{folder} exists already: only the questions are asked again (remove {home} to start over)")
    else:
        run("composer", "-n", ranks, "train.py", config_path, *overrides)
        checkpoints = str((home / "checkpoints").relative_to(ROOT))
        output = str(folder.relative_to(ROOT))
        run("python", "scripts/convert_checkpoint_to_hf.py", "--composer_path", checkpoints, "--hf_output_path", output)
    assert config.eval_loader is not None
    heldout = config.eval_loader.dataset.hf_kwargs.data_files
    assert isinstance(heldout, str)
    results = examine(folder, config, ROOT / heldout, device)
    metrics = read_metrics(find_run(home).metrics)
    show(results, metrics, folder, None if done else time.monotonic() - started)
    return results
