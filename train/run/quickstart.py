"""The main job from end to end: train the tiny DBRX, export it, ask stock transformers what was never trained on."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from data.base.errors import ConfigError
from train.config.schema import TrainConfig
from train.generation.decoders import TransformersDecoder
from train.generation.exact_match import exact_match, exact_match_result
from train.generation.open_model import open_model
from train.generation.questions import question_text, read_questions
from train.generation.results import keep
from train.hardware.device import Device, choose_device
from train.models.dbrx import DbrxForCausalLM
from train.models.init import initialise

ROOT = Path(__file__).resolve().parents[2]


_OF_LAUNCHER = "Waiting up to 30 seconds for all training processes to terminate."
"""The line that Composer's launcher ends every run with, in its own process."""


def run(*command: str) -> None:
    """A command of this project, in its root. Raises ConfigError when it fails: it has shown why itself."""
    print(f"\n$ {' '.join(command)}", flush=True)
    program = [str(Path(sys.executable).parent / command[0]), *command[1:]]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            _show(process.stdout)
        except KeyboardInterrupt:  # which the command gets as well, and ends after it has saved
            _show(process.stdout)
            raise
    if process.returncode:
        raise ConfigError(f"`{' '.join(command)}` ended with exit code {process.returncode}")


def _show(lines: Iterable[str]) -> None:
    for line in lines:
        if not line.startswith(_OF_LAUNCHER):
            print(line, end="", flush=True)


def kinds(path: Path) -> list[str]:
    """The kind of task of each question."""
    return [json.loads(line)["task"] for line in path.read_text(encoding="utf-8").splitlines()]


def untrained(folder: Path, config: TrainConfig) -> PreTrainedModel:
    """The model that the run began with, in transformers' form."""
    ours = DbrxForCausalLM(config.model)
    initialise(ours, config.model, config.seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    model.load_state_dict(ours.state_dict())
    return model.eval()


def logged(log: str, metric: str) -> list[float]:
    """The values of a metric in a file logger's text, in order."""
    return [float(value) for value in re.findall(rf"^\[metric\].*{re.escape(metric)}: ([\d.e+-]+)", log, re.MULTILINE)]


def examine(folder: Path, config: TrainConfig, heldout: Path, device: Device) -> dict[str, dict[str, Any]]:
    """By kind of task, and over `all`: how many were asked, and answered exactly before and after; and one example."""
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


def show(results: dict[str, dict[str, Any]], log: str, folder: Path, seconds: float | None) -> None:
    """The table that ends the quickstart."""
    console = Console(width=110, highlight=False)
    table = Table("held-out questions", "asked", "before", "after", "for example", title="Answered exactly")
    for kind, result in results.items():
        # Rounded down: 100% is all of them.
        share = f"{result['after']} ({100 * result['after'] // result['asked']}%)"
        table.add_row(kind, str(result["asked"]), str(result["before"]), share, result["example"])
    console.print(table)
    losses = logged(log, "metrics/eval/LanguageCrossEntropy")
    speeds = logged(log, "throughput/tokens_per_sec")
    facts = Table(show_header=False)
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    if losses:
        facts.add_row("held-out loss before and after", f"{losses[0]:.3f} -> {losses[-1]:.3f}")
    if speeds:
        facts.add_row("tokens per second, all ranks", f"{speeds[-1]:,.0f}")
    if seconds is not None:
        facts.add_row("wall clock, all of it", f"{seconds:.0f} s")
    facts.add_row("exported model", str(folder))
    facts.add_row("ask it more", f".venv/bin/python scripts/generate.py {folder} $'Reverse: dropless\\n'")
    facts.add_row("load it with", "transformers.AutoModelForCausalLM.from_pretrained(that folder)")
    facts.add_row("try next", "your own lines of {prompt, response}: run_name=mine eval_loader=null")
    facts.add_row("", "train_loader.dataset.hf_kwargs.data_files=my.jsonl")
    facts.add_row("", "what the 132B needs: .venv/bin/python train.py yamls/finetune/dbrx.yaml")
    console.print(facts)


def n_ranks(device: Device) -> int:
    """2, or 1 where there is but one GPU."""
    return 2 if device == "cpu" else min(2, torch.cuda.device_count())


def quickstart(config_path: str, config: TrainConfig, overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Trains, exports and asks; what an earlier call has finished is left as it is. overrides are in config already."""
    device = choose_device(config.device)
    ranks = str(n_ranks(device))
    started = time.monotonic()
    home = ROOT / "runs" / str(config.run_name)
    folder = home / "hf"
    done = folder.exists()
    if done:
        print(f"{folder} is there already: only the questions are asked again (remove {home} to start over)")
    else:
        run("composer", "-n", ranks, "train.py", config_path, *overrides)
        checkpoints = str((home / "checkpoints").relative_to(ROOT))
        output = str(folder.relative_to(ROOT))
        run("python", "scripts/convert_checkpoint_to_hf.py", "--composer_path", checkpoints, "--hf_output_path", output)
    assert config.eval_loader is not None
    heldout = config.eval_loader.dataset.hf_kwargs.data_files
    assert isinstance(heldout, str)
    results = examine(folder, config, ROOT / heldout, device)
    logs = sorted(home.glob("log-rank0*.txt"), key=lambda path: path.stat().st_mtime)
    log = "".join(path.read_text(encoding="utf-8") for path in logs)
    show(results, log, folder, None if done else time.monotonic() - started)
    return results
