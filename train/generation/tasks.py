"""Runs tasks of the lm-evaluation-harness on an exported model."""

import contextlib
import difflib
import importlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError, from_here
from data.hub.reach import why_offline
from data.tokenization.templates.limits import TemplateLimits
from train.generation.huggingface_compat import offline
from train.generation.open_model import check_exported, check_loaded, torch_device
from train.generation.results import Result
from train.hardware.device import Device
from train.models.precision import FORMATS, Precision


def run_tasks(
    folder: Path,
    tasks: Sequence[str],
    *,
    batch_size: int,
    precision: Precision,
    device: Device,
    num_fewshot: int | None = None,
    limit: int | None = None,
    apply_chat_template: bool = False,
) -> dict[str, Result]:
    """Run the lm-evaluation-harness on an exported folder with transformers' own DBRX. Returns the results by the name
    of the task or task group.

    Each of `tasks` is the name of a task of the harness, the path of a YAML file, or the path of a folder, which stands
    for all tasks that its YAML files define. Raises ConfigError if the harness is not installed, if the folder is not a
    complete DBRX, or if a task does not exist or cannot be loaded.
    """
    harness = _harness()
    weights = check_exported(folder)
    with offline() if why_offline() is not None else contextlib.nullcontext():
        loaded = _load_tasks(tasks)
        model = harness.models.huggingface.HFLM(
            pretrained=str(folder),
            device=str(torch_device(device)),
            dtype=FORMATS[precision].dtype,
            batch_size=batch_size,
            trust_remote_code=False,
        )
        check_loaded(weights, model.model)
        if apply_chat_template:
            _limit_template(model.tokenizer)
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


def _limit_template(tokenizer: Any) -> None:
    """Limit the resources of the chat template, because the harness renders conversations directly with transformers'
    tokenizer, which has no limits."""
    render = tokenizer.apply_chat_template

    def limited(*args: Any, **kwargs: Any) -> Any:
        with TemplateLimits(f"the chat template of {tokenizer.name_or_path}"):
            return render(*args, **kwargs)

    tokenizer.apply_chat_template = limited


def results_of(out: Mapping[str, Any]) -> dict[str, Result]:
    """Convert the harness's results to our format. The names of metrics are unchanged, except that the suffix for the
    filter `none` is removed: `acc,none` becomes `acc`."""
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


def _load_tasks(tasks: Sequence[str]) -> list[Any]:
    """Load tasks and groups of the harness, including their data."""
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
        except Exception as error:  # the task's YAML, its functions and datasets can raise almost any error
            raise ConfigError(_cannot_load(name, error)) from error
        group = loaded.get("groups", {}).get(name)
        found |= {name: group} if group is not None else loaded["tasks"]
    return list(found.values())


def _is_path(task: str) -> bool:
    if not ("/" in task or task.endswith((".yaml", ".yml"))):
        return False
    if not Path(task).exists():
        raise ConfigError(f"--tasks contains {task!r}, but there is no such file or folder{from_here(task)}")
    return True


def _names_in(path: Path, manager: Any) -> list[str]:
    """The names of the tasks that a YAML file defines, or that all YAML files of a folder define."""
    path = path.resolve()
    names = [
        name
        for name, entry in manager.task_index.items()
        if entry.yaml_path is not None
        and name in manager.all_subtasks
        and (path in Path(entry.yaml_path).resolve().parents or Path(entry.yaml_path).resolve() == path)
    ]
    if not names:
        raise ConfigError(
            f"--tasks contains {str(path)!r}, which defines no task: specify a YAML file with the key `task`"
        )
    return sorted(names)


def _known(name: str, manager: Any) -> str:
    if name in manager.task_index:
        return name
    close = difflib.get_close_matches(name, manager.all_tasks, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    raise ConfigError(f"--tasks contains {name!r}, which is not a task of the lm-evaluation-harness{hint}")


def _cannot_load(name: str, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if type(error) is FileNotFoundError:  # isinstance would also accept errors of the hub, which are subclasses
        return (
            f"--tasks contains {name!r}, whose data does not exist ({reason}): add the data, or correct the task's YAML"
        )
    no_network = why_offline()
    hint = f"; {no_network}: load the task's data once with network access, or use local tasks" if no_network else ""
    return f"--tasks contains {name!r}, which cannot be loaded ({type(error).__name__}: {reason}){hint}"
