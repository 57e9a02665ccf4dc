"""The steps of the example, from the text of the standard library to a served model."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError
from scripts.dev.example.commands import ROOT, Commands, Output
from scripts.dev.example.server import complete, get, serving

STREAMS = ("code", "docstrings", "comments")
KINDS = ("name", "parameters", "kind")
RUNS = ("pretrain", "finetune", "lora")
EVALUATED = {"pretrain": ("name", "parameters"), "finetune": KINDS, "lora": KINDS}
"""For each run, the kinds of held-out questions with which the model is evaluated."""
SHORT_EVALUATED = {"pretrain": (), "finetune": ("parameters",), "lora": ("kind",)}
TASK = """\
task: heldout_STREAM
dataset_path: json
dataset_kwargs: {data_files: {test: DATA/heldout-STREAM.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text[-250:]}}"
metric_list: [{metric: byte_perplexity}]
"""
"""A task of the lm-evaluation-harness: the perplexity per byte of the last 250 characters of every held-out module.
These characters fit into a row of the training data."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The paths that the example reads and writes, and the length of its runs."""

    runs: Path = Path("runs")
    data: Path = Path(".cache/stdlib")
    figures: Path = Path("docs/examples/python-stdlib")
    port: int = 8000
    short: bool = False
    """Whether to train only for a few batches, on one rank and a small amount of data, to test the steps but not the
    model."""

    def run(self, name: str) -> Path:
        return self.runs / f"stdlib-{name}"

    def model(self, name: str) -> Path:
        """The exported folder of a run."""
        return self.run(name) / "hf"


@dataclass
class Results:
    """The results that the page shows."""

    outputs: dict[str, Output] = field(default_factory=dict)
    """The command and the output of each step."""
    exact: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """For each run and kind of question: the number `asked`, and the share that was answered exactly."""
    perplexity: dict[str, dict[str, float]] = field(default_factory=dict)
    """For each run and stream: the perplexity per byte of held-out text."""
    served: dict[str, Any] = field(default_factory=dict)


def run_steps(commands: Commands, settings: Settings) -> Results:
    """Run every step whose output is not stored yet. Raises ConfigError if a step fails."""
    results = Results()
    outputs = results.outputs
    _make_data(commands, settings, outputs)
    for number, name in enumerate(RUNS):
        base = RUNS[number - 1] if number else None
        outputs[name] = commands.run(name, *_train(settings, name, base))
        outputs[f"export-{name}"] = commands.run(f"export-{name}", *_export(settings, name))
        for kind in SHORT_EVALUATED[name] if settings.short else EVALUATED[name]:
            results.exact.setdefault(name, {})[kind] = _exact_match(commands, settings, outputs, name, kind)
        if not settings.short:
            results.perplexity[name] = _perplexity(commands, settings, outputs, name)
    _generate(commands, settings, outputs)
    results.served = _serve(commands, settings)
    counted = results.exact[RUNS[-1]][KINDS[-1]]
    if results.served["exact"] != round(counted["share"] * counted["asked"]):
        raise ConfigError(
            f"the server answered {results.served['exact']} questions exactly, but evaluate.py reports {counted}"
        )
    return results


def _make_data(commands: Commands, settings: Settings, outputs: dict[str, Output]) -> None:
    options = [] if settings.data == Settings.data else ["--out", str(settings.data)]
    options += ["--modules", "24"] if settings.short else []
    heldout = ["--heldout", "4" if settings.short else "20"]
    for name in ("data", "questions"):
        script = f"scripts/dev/make_stdlib_{name}.py"
        outputs[name] = commands.run(name, "python", script, *heldout, *options)
    picture = ["--png", str(settings.figures / "mix.png")]
    words = [_config("pretrain"), *_overrides(settings, "pretrain", None), "--data", *picture]
    outputs["plan"] = commands.run("plan", "python", "scripts/plan.py", *words)


def _config(name: str) -> str:
    return f"yamls/examples/stdlib_{name}.yaml"


def _train(settings: Settings, name: str, base: str | None) -> list[str]:
    launcher = ["python"] if settings.short else ["composer", "-n", "2"]
    return [*launcher, "train.py", _config(name), *_overrides(settings, name, base)]


def _overrides(settings: Settings, name: str, base: str | None) -> list[str]:
    changed = [] if base is None else [f"model.pretrained_model_name_or_path={settings.model(base)}"]
    if settings.runs != Settings.runs:
        changed.append(f"save_folder={settings.run(name)}/checkpoints")
    if settings.data != Settings.data:
        changed += _other_data(settings, name)
    if settings.short:
        changed += ["device=cpu", "global_train_batch_size=4", "device_train_microbatch_size=4"]
        if name == "pretrain":
            changed += ["max_duration=10ba", "experts.interval=2ba"]
        else:
            changed += ["max_duration=4ba", "eval_first=false", "eval_interval=4ba"]
    return changed


def _other_data(settings: Settings, name: str) -> list[str]:
    files = "hf_kwargs.data_files"
    train, evaluation = "train_loader.dataset", "eval_loader.dataset"
    changed = [f"{train}.cache_dir={settings.data}/cache"]
    if name == "pretrain":
        return changed + [f"{train}.streams.{stream}.{files}={settings.data}/{stream}.jsonl" for stream in STREAMS]
    trained, asked = ("questions", KINDS[:2]) if name == "finetune" else ("kinds", KINDS[2:])
    heldout = ",".join(f"{settings.data}/heldout-{kind}.jsonl" for kind in asked)
    changed.append(f"{train}.{files}={settings.data}/{trained}.jsonl")
    return [*changed, f"{evaluation}.cache_dir={settings.data}/cache", f"{evaluation}.{files}=[{heldout}]"]


def _export(settings: Settings, name: str) -> list[str]:
    words = ["python", "scripts/convert_checkpoint_to_hf.py", "--composer_path", f"{settings.run(name)}/checkpoints"]
    words += ["--hf_output_path", str(settings.model(name))]
    # In a short run, only the last export is verified. Its weights are the result of all three runs.
    return [*words, "--no-verify"] if settings.short and name != RUNS[-1] else words


def _evaluate(
    commands: Commands, settings: Settings, outputs: dict[str, Output], step: str, name: str, *words: str
) -> dict[str, Any]:
    """Evaluate the exported model of a run. Returns the contents of evaluation.json in the exported folder."""
    short = ["--limit", "2"] if settings.short else []
    outputs[step] = commands.run(step, "python", "scripts/evaluate.py", str(settings.model(name)), *words, *short)
    return json.loads((ROOT / settings.model(name) / "evaluation.json").read_text("utf-8"))


def _exact_match(
    commands: Commands, settings: Settings, outputs: dict[str, Output], name: str, kind: str
) -> dict[str, Any]:
    file = settings.data / f"heldout-{kind}.jsonl"
    results = _evaluate(commands, settings, outputs, f"exact-{name}-{kind}", name, "--exact_match", str(file))
    result = results[file.name]
    return {"asked": result["asked"], "share": result["metrics"]["exact_match"]}


def _perplexity(commands: Commands, settings: Settings, outputs: dict[str, Output], name: str) -> dict[str, float]:
    folder = settings.data / "tasks"
    (ROOT / folder).mkdir(exist_ok=True)
    for stream in STREAMS:
        (ROOT / folder / f"{stream}.yaml").write_text(task(settings, stream), encoding="utf-8")
    results = _evaluate(commands, settings, outputs, f"perplexity-{name}", name, "--tasks", str(folder))
    return {stream: results[f"heldout_{stream}"]["metrics"]["byte_perplexity"] for stream in STREAMS}


def task(settings: Settings, stream: str) -> str:
    """Return the YAML of a stream's task."""
    return TASK.replace("STREAM", stream).replace("DATA", str(settings.data))


def _generate(commands: Commands, settings: Settings, outputs: dict[str, Output]) -> None:
    script, length = ["python", "scripts/generate.py"], "8" if settings.short else "160"
    prompts = {
        "pretrain": ["def read_file(self, ", "Return the "],
        "finetune": [
            "Parameters: def open_reader(self, stream, mode='r'):\n",
            "Name: Return the number of items in the queue.\n",
        ],
        "lora": [
            "Kind: read_text_file\n",
            "Kind: TextFileReader\n",
            "Kind: MAX_LINES\n",
            "Parameters: def open_reader(self, stream, mode='r'):\n",
        ],
    }
    for name, asked in prompts.items():
        words = [str(settings.model(name)), *asked, "--max_new_tokens", length]
        outputs[f"generate-{name}"] = commands.run(f"generate-{name}", *script, *words)


def _serve(commands: Commands, settings: Settings) -> dict[str, Any]:
    """Start a server for the last model, and return its answers to the held-out questions of the last task."""
    kept, folder = commands.folder / "served.json", settings.model(RUNS[-1])
    if kept.exists():
        return json.loads(kept.read_text("utf-8"))
    lines = (ROOT / settings.data / f"heldout-{KINDS[-1]}.jsonl").read_text("utf-8").splitlines()
    questions = [json.loads(line) for line in lines][: 2 if settings.short else None]
    with serving(commands, folder, settings.port) as (command, url):
        models = get(f"{url}/v1/models")
        answers = [complete(url, folder, question["prompt"]) for question in questions]
    pairs = list(zip(questions, answers, strict=True))
    exact = sum(answer["choices"][0]["text"] == question["response"] for question, answer in pairs)
    served = {"command": command, "models": models, "asked": len(pairs), "exact": exact}
    served |= {"prompt": questions[0]["prompt"], "answer": answers[0]}
    if not all(answer["choices"][0]["finish_reason"] in ("stop", "length") for answer in answers):
        raise ConfigError(f"the server ended an answer with an unknown finish_reason: {answers}")
    kept.write_text(json.dumps(served), encoding="utf-8")
    return served
