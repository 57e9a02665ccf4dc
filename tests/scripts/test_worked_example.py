"""The worked example: its questions, how it shows commands, and a short form of all its steps."""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.dev.example.commands import Commands, Output, plain, quoted
from scripts.dev.example.page import console, lines, percent
from scripts.dev.example.questions import kind_questions, make_questions, name_questions, parameters_questions
from scripts.dev.example.server import PACKAGES
from tests.helpers.missing import skip_or_fail

ROOT = Path(__file__).parents[2]
SOURCE = '''
MAX_LINES = 10
lines = 0

def read_text_file(path, *, encoding="utf-8", **options):
    """Return the whole content as one string.

    Nothing else.
    """

def _private(one, two):
    """Not asked about at all."""

class Queue:
    def size(self):
        """The size of the queue, in items."""
'''


def pairs(questions):
    return [(question["prompt"], question["response"]) for question in questions]


def test_questions_are_about_names_parameters_and_kinds():
    signature = "def read_text_file(path, *, encoding='utf-8', **options):"
    # size has one parameter, and its docstring contains the name.
    assert pairs(parameters_questions(SOURCE)) == [(f"Parameters: {signature}\n", "path, encoding, options")]
    assert pairs(name_questions(SOURCE)) == [("Name: Return the whole content as one string.\n", "read_text_file")]
    kinds = [("Kind: Queue\n", "class"), ("Kind: MAX_LINES\n", "constant")]
    assert [pair for pair in pairs(kind_questions(SOURCE)) if pair[1] != "function"] == kinds


def test_held_out_questions_are_about_other_modules_and_names(tmp_path):
    for number in range(6):
        text = SOURCE.replace("read_text_file", f"read_file_{number // 2}")
        (tmp_path / f"{number}.py").write_text(text + f"def only_{number}(one, two):\n    pass\n")
    made = make_questions(sorted(tmp_path.glob("*.py")), heldout=3)
    assert sorted(made) == ["heldout-kind", "heldout-name", "heldout-parameters", "kinds", "questions"]
    # Modules 2 and 5 are held out. Modules 3 and 4 contain their read_file_1 and read_file_2 as well.
    assert {question["about"] for question in made["heldout-parameters"]} == {"only_2", "only_5"}
    assert made["heldout-name"] == []
    assert len(made["questions"]) == len({question["prompt"] for question in made["questions"]})


@pytest.mark.subprocess
def test_a_long_command_is_continued_and_quoted_for_bash():
    words = ["python", "a.py", "key=[1, 2]", "Class: a\n", "it's", *["x" * 30] * 4]
    command = quoted(words)
    assert max(map(len, command.splitlines())) <= 102
    script = command.replace("python a.py", "printf '%s|'")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "|".join(words[2:]) + "|"


def test_output_is_shown_without_colours_bars_and_paths():
    assert plain(f"\x1b[1mbold\x1b[0m\n 1%\r 100%\n{ROOT}/runs/a \n") == "bold\n 100%\nruns/a\n"
    output = Output("ls", "first\nstep  tokens\n1\nreport x\nlast", 1.0)
    assert console(output, "^step", "^report") == "```console\n$ ls\nstep  tokens\n1\nreport x\n```"
    with pytest.raises(ValueError, match="gone"):
        lines(output, "gone")
    assert [percent(share) for share in (0.0, 0.29, 0.999, 1.0)] == ["0%", "29%", "99%", "100%"]


@pytest.mark.subprocess
def test_a_command_that_was_run_is_not_run_again(tmp_path):
    commands = Commands(tmp_path)
    words = ("python", "-c", "import time; print(time.time_ns())")
    first = commands.run("time", *words)
    assert commands.run("time", *words) == first
    assert commands.run("time", "python", "-c", "print(1)").text == "1\n"


def run_example(folder: Path, *options: str) -> Path:
    """Run the script in `folder`, and return its page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = folder / "docs" / "examples"
    command = [sys.executable, "scripts/dev/worked_example.py", "--work", str(folder / "work"), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command += ["--port", str(port), *options]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return out / "python-stdlib.md"


def check_page(page: Path, folder: Path) -> dict[str, float]:
    """The last training loss of each run, after checks that every step did what the page says."""
    text = page.read_text("utf-8")
    for picture in re.findall(r"!\[[^\]]*\]\((python-stdlib/[^)]+)\)", text):
        assert (page.parent / picture).read_bytes().startswith(b"\x89PNG"), picture
        assert (page.parent / picture).stat().st_size < 150_000
    assert "verified: the whole model: largest relative difference" in text
    served = json.loads((folder / "work/runs/stdlib-example/served.json").read_text())
    assert served["models"]["data"][0]["id"].endswith("stdlib-lora/hf")
    assert served["answer"]["usage"]["completion_tokens"] > 0
    losses = {}
    for name in ("pretrain", "finetune", "lora"):
        metrics = (folder / f"work/runs/stdlib-{name}/checkpoints/metrics.jsonl").read_text().splitlines()
        logged = [json.loads(line)["metrics"] for line in metrics]
        losses[name] = [step["loss/train/lm"] for step in logged if "loss/train/lm" in step]
    assert all(run[-1] < run[0] for run in losses.values()), losses
    return {name: run[-1] for name, run in losses.items()}


def require_server() -> None:
    if importlib.util.find_spec("openai") is None and not PACKAGES.is_dir():
        skip_or_fail(f"{PACKAGES} is missing: make .venv/serve")


@pytest.mark.subprocess
@pytest.mark.slow
def test_the_short_form_runs_every_step(tmp_path):
    require_server()
    check_page(run_example(tmp_path, "--short"), tmp_path)


@pytest.mark.proof
@pytest.mark.subprocess
def test_the_whole_example_learns_its_tasks(tmp_path):
    """This takes about half an hour on 2 busy cores."""
    require_server()
    losses = check_page(run_example(tmp_path), tmp_path)
    assert losses["pretrain"] < 1.6
    served = json.loads((tmp_path / "work/runs/stdlib-example/served.json").read_text())
    assert served["exact"] > 0.5 * served["asked"]
