"""Questions of the tasks of the lm-evaluation-harness, as the harness asks them.

A task file can reference functions with `!function`, which the harness executes when it loads the task.
"""

import importlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError, from_here
from data.config.suggest import near, show
from data.curation.decontamination.questions import QUESTION_FIELDS, EvalSet, Question, texts_of
from data.secrets.redaction import is_address

_KEY = "lm_eval"
_FORMATS = ("json", "csv", "parquet", "arrow", "text")
"""Values of `dataset_path` with which the datasets library reads the files in `dataset_kwargs`."""
_TEMPLATES = ("doc_to_text", "doc_to_choice", "doc_to_target", "doc_to_decontamination_query")


def read_task(name: str, path: str) -> EvalSet:
    """The questions of the task that the YAML file defines: the documents of its test split, or else of its validation
    split.

    The text of a question is the task's `doc_to_decontamination_query` if `should_decontaminate` is set, and otherwise
    `doc_to_text`, followed by the choices and the target. Raises ConfigError if the harness is not installed, if the
    file defines no task, or if the task needs data that is not in local files.
    """
    _check_harness()
    config = _config_of(path)
    _check_local(path, config)
    try:
        task = _load(path, config["task"])
        columns = _columns(config, task)
        documents = enumerate(task.eval_docs, start=1)
        questions = [_question(f"{path} question {number}", task, dict(doc), columns) for number, doc in documents]
    except Exception as error:  # the task's YAML, its functions and datasets can raise almost any error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"is {path!r}, but this task cannot be loaded ({type(error).__name__}: {reason}): correct the task's YAML",
            key=_KEY,
        ) from error
    _check_text(path, questions)
    return EvalSet(name=name, questions=questions, common=list(_literals(config)))


def _check_harness() -> None:
    try:
        importlib.import_module("lm_eval.tasks")
    except ImportError as error:
        raise ConfigError(f"needs the lm-evaluation-harness ({error}): pip install -e '.[eval]'", key=_KEY) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _config_of(path: str) -> dict[str, Any]:
    """The task's YAML with its includes. Functions are not resolved."""
    if not Path(path).is_file():
        raise ConfigError(f"is {path!r}, but no such file exists{from_here(path)}", key=_KEY)
    for entry in _manager(path).task_index.values():
        is_here = entry.yaml_path is not None and Path(entry.yaml_path).samefile(path)
        if is_here and entry.cfg is not None and isinstance(entry.cfg.get("task"), str) and "class" not in entry.cfg:
            return entry.cfg
    raise ConfigError(
        f"is {path!r}, which does not define a task in YAML: specify a file that ends in .yaml and has the keys "
        "task and dataset_path",
        key=_KEY,
    )


def _manager(path: str) -> Any:
    """The harness's index of the folder of the file. The harness's own tasks are left out, because their data is on the
    hub."""
    tasks = importlib.import_module("lm_eval.tasks")
    return tasks.TaskManager(include_path=str(Path(path).parent), include_defaults=False)


def _check_local(path: str, config: Mapping[str, Any]) -> None:
    """Raises ConfigError if the task reads a dataset of the hub, or files that do not exist."""
    if config.get("custom_dataset") is not None:
        return
    dataset, kwargs = config.get("dataset_path"), config.get("dataset_kwargs") or {}
    if dataset not in _FORMATS:
        if not (isinstance(dataset, str) and Path(dataset).exists()):
            raise ConfigError(
                f"is {path!r}, which reads the dataset {show(dataset)} of the hub{near(dataset, _FORMATS)}, but only "
                "local files are read: download the questions, and set dataset_path: json and "
                "dataset_kwargs: {data_files: FILE}, or use path instead of lm_eval",
                key=_KEY,
            )
        return
    for file in texts_of(kwargs.get("data_files")):
        if is_address(file):
            raise ConfigError(f"is {path!r}, which reads {file!r}, but only local files are read", key=_KEY)
        folder = Path(kwargs.get("data_dir") or "")
        if not any(character in file for character in "*?[") and not (folder / file).exists():
            raise ConfigError(
                f"is {path!r}, which reads {file!r}, but no such file exists{from_here(folder / file)}", key=_KEY
            )


def _load(path: str, name: str) -> Any:
    return _manager(path).load([name])["tasks"][name]


def _question(place: str, task: Any, doc: dict[str, Any], columns: list[str]) -> Question:
    if task.should_decontaminate():
        text = str(task.doc_to_decontamination_query(doc))
    else:
        choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else []
        text, target = task.doc_to_text(doc), task.doc_to_target(doc)
        # With choices, the text or the target can be the number of a choice.
        text = " ".join(texts_of([text, choices, target]))
    exact = " ".join(texts_of([doc[name] for name in columns])) or text
    return Question(place, (text, exact), exact)


def _columns(config: Mapping[str, Any], task: Any) -> list[str]:
    """The column that contains the question: the first of QUESTION_FIELDS that is used in the task's `doc_to_text`, or
    else the first column that is used there; empty if `doc_to_text` is a function."""
    template, features = config.get("doc_to_text"), list(task.features)
    if template in features:
        return [str(template)]
    if not isinstance(template, str) or callable(task.config.doc_to_text):
        return [name for name in QUESTION_FIELDS if name in features][:1]
    # The order of the names in the template is that of their first use.
    used = sorted((name for name in features if name in _names(template)), key=template.index)
    return [name for name in (*QUESTION_FIELDS, *used) if name in used][:1]


def _names(template: str) -> set[str]:
    """The variables of a Jinja template."""
    from jinja2 import Environment, meta

    return meta.find_undeclared_variables(Environment().parse(template))


def _literals(config: Mapping[str, Any]) -> Iterator[str]:
    """The texts between the expressions of the task's templates, which are the same in all questions."""
    from jinja2 import Environment

    for key in _TEMPLATES:
        if isinstance(template := config.get(key), str):
            tokens = Environment().lex(template)
            yield from (value for _, kind, value in tokens if kind == "data")


def _check_text(path: str, questions: Iterable[Question]) -> None:
    for question in questions:
        if not question.exact.strip():
            raise ConfigError(f"is {path!r}, but {question.place} has no text: correct doc_to_text", key=_KEY)
