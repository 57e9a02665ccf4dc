"""The page of the example: python-stdlib.md.jinja, filled in with the recorded outputs and results."""

import json
import re
from pathlib import Path
from typing import Any

import jinja2

from scripts.dev.example.commands import ROOT, Output
from scripts.dev.example.server import completion_request
from scripts.dev.example.steps import KINDS, RUNS, STREAMS, Results, Settings, task

TEMPLATE = Path(__file__).with_name("python-stdlib.md.jinja")
LABELS = {"pretrain": "pretrained", "finetune": "fine-tuned", "lora": "with LoRA, merged"}
_NOISE = re.compile(
    r"Waiting up to 30 seconds|Warning: |^\s*warnings\.warn|^\[transformers\]|^  output = func|^Loading weights"
)


def render(results: Results, settings: Settings) -> str:
    """Return the page in Markdown. Raises UndefinedError if the template refers to a step that was not run."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"command": command, "console": console, "lines": lines}
    context: dict[str, Any] = {
        "outputs": results.outputs,
        "exact": {run: {kind: _share(results, run, kind) for kind in KINDS} for run in RUNS},
        "asked": results.exact[RUNS[-1]],
        "perplexity": results.perplexity,
        "served": results.served,
        "answer": json.dumps(results.served["answer"], indent=2),
        "questions": {kind: _questions(settings.data / f"heldout-{kind}.jsonl") for kind in KINDS},
        "minutes": round(sum(output.seconds for output in results.outputs.values()) / 60),
        "runs": RUNS,
        "tokens": _last(results.outputs["pretrain"], r"^ *\d+/\d+ +(\S+)"),
        "labels": LABELS,
        "streams": STREAMS,
        "counts": {name: _count(settings.data / f"{name}.jsonl") for name in ("questions", "kinds")},
        "task": task(settings, STREAMS[0]).strip(),
        "settings": settings,
        "request": completion_request(settings.model(RUNS[-1]), results.served["prompt"]),
    }
    text = environment.from_string(TEMPLATE.read_text("utf-8")).render(context)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _share(results: Results, run: str, kind: str) -> str:
    result = results.exact.get(run, {}).get(kind)
    return "–" if result is None else percent(result["share"])


def _questions(file: Path, count: int = 2) -> list[dict[str, str]]:
    return [json.loads(line) for line in (ROOT / file).read_text("utf-8").splitlines()[:count]]


def lines(output: Output, first: str | None = None, last: str | None = None) -> list[str]:
    """Return the lines of the output from the first line that matches `first` to the next line that matches `last`.

    Raises ValueError if no line matches.
    """
    found = [line for line in output.text.splitlines() if not _NOISE.search(line)]
    start = 0 if first is None else _matching(found, first, 0)
    end = len(found) - 1 if last is None else _matching(found, last, start)
    return found[start : end + 1]


def _matching(found: list[str], pattern: str, start: int) -> int:
    for number in range(start, len(found)):
        if re.search(pattern, found[number]):
            return number
    raise ValueError(f"no line of the output matches {pattern!r}:\n" + "\n".join(found))


def console(output: Output, first: str | None = None, last: str | None = None) -> str:
    """Return a fenced block with the command and the lines of its output that `lines` selects."""
    shown = "\n".join(lines(output, first, last)).strip("\n")
    return f"```console\n$ {output.command}\n{shown}\n```"


def percent(share: float) -> str:
    """Format a share as a percentage, rounded down, so that 100% means that all answers are correct."""
    return f"{int(100 * share + 1e-9)}%"


def _last(output: Output, pattern: str) -> str:
    return re.findall(pattern, output.text, re.MULTILINE)[-1]


def command(output: Output) -> str:
    """Return a fenced block that contains only the command."""
    return f"```console\n$ {output.command}\n```"


def _count(file: Path) -> int:
    return len((ROOT / file).read_text("utf-8").splitlines())
