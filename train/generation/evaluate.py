"""How good a model is: exact answers to held-out prompts, and tasks of the lm-evaluation-harness; and where it is told.

Results are kept by name in a folder's evaluation.json; the table in its README.md, the model card, shows all of them.
"""

import contextlib
import difflib
import importlib
import json
import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError
from data.base.versions import installed_versions
from data.hub.reach import why_offline
from train.config.sampling import Sampling
from train.generation.ask import Question, ask, encode, expected_answer
from train.generation.decoders import (
    Opened,
    Precision,
    check_exported,
    check_loaded,
    default_precision,
    torch_device,
)
from train.hardware.device import Device, choose_device

RESULTS = "evaluation.json"
CARD = "README.md"
MARKER = "<!-- evaluation -->"
"""Stands before and after what is written into the card; all else in it is left as it is."""

Result = dict[str, Any]
"""`asked`, how many; `metrics`, name -> value (or null); `stderr`, the same for those that have one; and settings."""


@dataclass(frozen=True)
class Checked:
    """One question and the model's greedy answer."""

    question: Question
    answer: str

    @property
    def exact(self) -> bool:
        return self.answer == expected_answer(self.question)


def exact_match(opened: Opened, questions: Sequence[Question], batch_size: int) -> list[Checked]:
    """The greedy answers, each until its end token, in order. One is exact when it is the expected text, to the letter.

    Raises DataError when a prompt leaves no room for an answer.
    """
    expected = [len(opened.tokenizer.encode(expected_answer(question))) for question in questions]
    # The end token, and one more, so that an answer that goes on is seen to.
    sampling = Sampling(max_new_tokens=max(expected) + 2)
    answers = ask(opened, encode(questions, opened, sampling), sampling, batch_size)
    return [Checked(question, answer.text) for question, answer in zip(questions, answers, strict=True)]


def exact_match_result(checked: Sequence[Checked]) -> Result:
    share = sum(one.exact for one in checked) / len(checked)
    stderr = (share * (1 - share) / len(checked)) ** 0.5
    return {"asked": len(checked), "metrics": {"exact_match": share}, "stderr": {"exact_match": stderr}}


def run_tasks(
    folder: Path,
    tasks: Sequence[str],
    *,
    batch_size: int,
    precision: Precision | None = None,
    device: Device | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
) -> dict[str, Result]:
    """The lm-evaluation-harness on an exported folder, through stock transformers: results by task and group.

    A task is a name of the harness's own, a YAML file, or a folder of them, all of whose tasks are meant. Raises
    ConfigError when the harness is not installed, the folder is no whole DBRX, or a task is not there or cannot be
    loaded.
    """
    harness = _harness()
    device = choose_device(device)
    weights = check_exported(folder)
    with _offline() if why_offline() is not None else contextlib.nullcontext():
        loaded = _load_tasks(tasks)
        model = harness.models.huggingface.HFLM(
            pretrained=str(folder),
            device=str(torch_device(device)),
            dtype={"fp32": "float32", "bf16": "bfloat16"}[precision or default_precision(device)],
            batch_size=batch_size,
            trust_remote_code=False,
        )
        check_loaded(weights, model.model)
        out = harness.simple_evaluate(
            model,
            tasks=loaded,
            num_fewshot=num_fewshot,
            limit=limit,
            apply_chat_template=apply_chat_template,
            log_samples=False,
            bootstrap_iters=1000,
        )
    return results_of(out)


def results_of(out: Mapping[str, Any]) -> dict[str, Result]:
    """The harness's results in our form, with its metrics' names: `acc,none` is acc under the filter none."""
    results: dict[str, Result] = {}
    for name, values in out["results"].items():
        metrics = {key: value for key, value in values.items() if "," in key and isinstance(value, int | float)}
        shown = {key.removesuffix(",none"): value for key, value in metrics.items() if "_stderr," not in key}
        errors = {key.replace("_stderr,", ","): value for key, value in metrics.items() if "_stderr," in key}
        stderr = {key.removesuffix(",none"): value for key, value in errors.items()}
        stderr = {key: value for key, value in stderr.items() if key in shown}
        results[name] = {"asked": out["n-samples"].get(name, {}).get("effective"), "metrics": shown, "stderr": stderr}
        for key, kept in (("versions", "version"), ("n-shot", "num_fewshot")):
            if out[key].get(name) is not None:
                results[name][kept] = out[key][name]
    return results


def _harness() -> Any:
    try:
        harness = importlib.import_module("lm_eval")
        importlib.import_module("lm_eval.models.huggingface")
    except ImportError as error:
        raise ConfigError(f"--tasks needs the lm-evaluation-harness ({error}): pip install -e '.[eval]'") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return harness


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """What is in the hub's cache serves at once; otherwise its library would ask for half a minute."""
    modules = [importlib.import_module(name) for name in ("huggingface_hub.constants", "datasets.config")]
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module in modules:
            setattr(module, "HF_HUB_OFFLINE", True)  # noqa: B010
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            setattr(module, "HF_HUB_OFFLINE", value)  # noqa: B010


def _load_tasks(tasks: Sequence[str]) -> list[Any]:
    """The harness's tasks and groups; their data is loaded on the way."""
    manager_of = importlib.import_module("lm_eval.tasks").TaskManager
    local = [Path(task) for task in tasks if _is_path(task)]
    folders = sorted({path if path.is_dir() else path.parent for path in local})
    manager = manager_of(include_path=list(map(str, folders)) or None, include_defaults=len(local) < len(tasks))
    names: list[str] = []
    for task in tasks:
        names += _names_in(Path(task), manager) if _is_path(task) else [_known(task, manager)]
    found: dict[str, Any] = {}
    for name in dict.fromkeys(names):
        try:
            loaded = manager.load([name])
        except Exception as error:  # of its YAML, its functions, or of datasets: almost anything
            raise ConfigError(_cannot_load(name, error)) from error
        group = loaded.get("groups", {}).get(name)
        found |= {name: group} if group is not None else loaded["tasks"]
    return list(found.values())


def _is_path(task: str) -> bool:
    if not ("/" in task or task.endswith((".yaml", ".yml"))):
        return False
    if not Path(task).exists():
        raise ConfigError(f"--tasks has {task!r}, but there is no such file or folder")
    return True


def _names_in(path: Path, manager: Any) -> list[str]:
    """The tasks that a YAML file, or all of a folder, define."""
    path = path.resolve()
    names = [
        name
        for name, entry in manager.task_index.items()
        if entry.yaml_path is not None
        and name in manager.all_subtasks
        and (path in Path(entry.yaml_path).resolve().parents or Path(entry.yaml_path).resolve() == path)
    ]
    if not names:
        raise ConfigError(f"--tasks has {str(path)!r}, but no task is defined there (YAML with a key `task`)")
    return sorted(names)


def _known(name: str, manager: Any) -> str:
    if name in manager.task_index:
        return name
    close = difflib.get_close_matches(name, manager.all_tasks, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ConfigError(f"--tasks has {name!r}, which the lm-evaluation-harness does not know{hint}")


def _cannot_load(name: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if type(error) is FileNotFoundError:  # those of the hub are of classes beneath it
        return f"--tasks has {name!r}, whose data is not there ({reason}): put it there, or mend the task's YAML"
    offline = why_offline()
    hint = f"; {offline}: load its data once where there is a network, or name local tasks" if offline else ""
    return f"--tasks has {name!r}, which cannot be loaded ({type(error).__name__}: {reason}){hint}"


def rows_of(results: Mapping[str, Result]) -> list[tuple[str, str, str, str]]:
    """(task, metric, value, asked) as text, one row a metric."""
    rows = []
    for name, result in results.items():
        asked = "" if result["asked"] is None else f"{result['asked']:,}"
        for metric, value in result["metrics"].items():
            spread = result["stderr"].get(metric)
            rows.append((name, metric, f"{value:.4f}" + (f" ± {spread:.4f}" if spread is not None else ""), asked))
    return rows


def keep(folder: Path, results: Mapping[str, Result], precision: Precision) -> dict[str, Result]:
    """Adds the results to the folder's evaluation.json and shows all that is there in its card; returns all.

    Raises ConfigError when one of them cannot be read or written.
    """
    file = folder / RESULTS
    now = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "precision": precision,
        "versions": installed_versions(("lm-eval", "torch", "transformers")),
    }
    every = read_kept(folder) | {name: {**result, **now} for name, result in results.items()}
    try:
        _replace(file, json.dumps(every, indent=2) + "\n")
        card = folder / CARD
        before = card.read_text(encoding="utf-8") if card.is_file() else f"# {folder.resolve().name}\n"
        _replace(card, with_section(before, section(every)))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the results cannot be written into {folder}: {error}") from None
    return every


def read_kept(folder: Path) -> dict[str, Result]:
    """What earlier evaluations left in the folder. Raises ConfigError when it cannot be read."""
    file = folder / RESULTS
    if not file.is_file():
        return {}
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        rows_of(kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} holds no results of an evaluation ({error!r}): remove it") from None
    return kept


def section(results: Mapping[str, Result]) -> str:
    """The card's part, in Markdown."""
    rows = [(*row, results[row[0]]["date"]) for row in rows_of(results)]
    header = ("task", "metric", "value", "asked", "date")
    lines = [header, ("---",) * len(header), *rows]
    table = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return f"## Benchmarks\n\n{table}\n\nSettings and versions of each are in {RESULTS}.\n"


def with_section(card: str, text: str) -> str:
    """The card with the text between its markers; at its end where there are none."""
    part = f"{MARKER}\n{text}{MARKER}"
    pattern = re.compile(f"{re.escape(MARKER)}.*{re.escape(MARKER)}", re.DOTALL)
    if pattern.search(card):
        return pattern.sub(lambda _: part, card)
    return f"{card.rstrip()}\n\n{part}\n"


def _replace(file: Path, text: str) -> None:
    """Whole or not at all."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)
