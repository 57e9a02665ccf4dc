"""From a dataset's own row to an example: one function a known dataset, `module:function`, or two columns by name."""

import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from data.errors import ConfigError, DataError

PreprocessingFn = Callable[[Any], Any]


def alpaca(row: Mapping[str, Any]) -> dict[str, str]:
    """tatsu-lab/alpaca: `{instruction, input, output, text}`; input is "" in rows that need none."""
    intro = "Below is an instruction that describes a task"
    more = ", paired with an input that provides further context" if row["input"] else ""
    context = f"### Input:\n{row['input']}\n\n" if row["input"] else ""
    ask = "Write a response that appropriately completes the request."
    prompt = f"{intro}{more}. {ask}\n\n### Instruction:\n{row['instruction']}\n\n{context}### Response:\n"
    return {"prompt": prompt, "response": row["output"]}


def dolly(row: Mapping[str, Any]) -> dict[str, str]:
    """databricks/databricks-dolly-15k: `{instruction, context, response, category}`; context is often ""."""
    context = f"### Context:\n{row['context']}\n\n" if row["context"] else ""
    prompt = f"### Instruction:\n{row['instruction']}\n\n{context}### Response:\n"
    return {"prompt": prompt, "response": row["response"]}


PREPROCESSORS: dict[str, PreprocessingFn] = {
    "alpaca": alpaca,
    "dolly": dolly,
}


def resolve_preprocessing_fn(value: str | Mapping[str, str] | None) -> PreprocessingFn | None:
    """The function of a registered name, of `module:function`, or of {prompt: column, response: column}.

    None when rows are examples already. Raises ConfigError when there is no such function.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return _import_function(value) if ":" in value else _registered(value)
    if set(value) != {"prompt", "response"}:
        raise ConfigError(
            f"preprocessing_fn is {dict(value)}, but a mapping must be {{prompt: COLUMN, response: COLUMN}}"
        )
    return _take_columns(value)


def preprocessing_source(value: str | Mapping[str, str] | None) -> str:
    """Text that changes when what the function does may have changed.

    A registered function is self-contained, so its own source says it all; of a `module:function` the whole module
    is taken, for the helpers beside it.
    """
    function = resolve_preprocessing_fn(value)
    if function is None:
        return ""
    if not isinstance(value, str):
        return json.dumps(dict(value or {}), sort_keys=True)
    if value in PREPROCESSORS:
        return inspect.getsource(function)
    module = value.partition(":")[0]
    defined = inspect.getmodule(inspect.unwrap(function))
    try:
        # Where it is named and where it is written: a package may only pass it on.
        named = inspect.getsource(importlib.import_module(module))
        return f"{value}\n{named}\n{inspect.getsource(defined) if defined is not None else ''}"
    except (OSError, TypeError):
        raise ConfigError(
            f"preprocessing_fn is {value!r}, but {module} has no Python source, so that a change of it would go "
            "unnoticed: wrap it in a function of a module of your own"
        ) from None


def _take_columns(columns: Mapping[str, str]) -> PreprocessingFn:
    def take(row: Any) -> dict[str, Any]:
        if not isinstance(row, Mapping):
            raise DataError(f"the row is {type(row).__name__}, but an object with columns is needed")
        for key, column in columns.items():
            if column not in row:
                raise DataError(
                    f"column {column!r} is missing, which preprocessing_fn takes for the {key} (the row has "
                    f"{', '.join(map(str, row)) or 'no columns'}){_did_you_mean(column, row)}"
                )
        return {key: row[column] for key, column in columns.items()}

    return take


def _registered(name: str) -> PreprocessingFn:
    if name not in PREPROCESSORS:
        raise ConfigError(
            f"preprocessing_fn is {name!r}, but there is no such function{_did_you_mean(name, PREPROCESSORS)} "
            f"(registered: {', '.join(PREPROCESSORS)}; one of your own is written module:function)"
        )
    return PREPROCESSORS[name]


def _import_function(value: str) -> PreprocessingFn:
    module_name, _, name = value.partition(":")
    if not module_name or module_name.startswith(".") or not name.isidentifier():
        raise ConfigError(f"preprocessing_fn is {value!r}, but one of your own is written module:function")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"preprocessing_fn is {value!r}, but {module_name} cannot be imported ({type(error).__name__}: {error}): "
            "is its folder in PYTHONPATH?"
        ) from error
    function = getattr(module, name, None)
    if function is None:
        functions = [key for key, thing in vars(module).items() if callable(thing)]
        raise ConfigError(
            f"preprocessing_fn is {value!r}, but {module_name} has no {name}{_did_you_mean(name, functions)}"
        )
    if not callable(function):
        raise ConfigError(
            f"preprocessing_fn is {value!r}, but {name} is not callable ({type(function).__name__}): name a function"
        )
    return function


def _did_you_mean(name: str, names: Iterable[Any]) -> str:
    close = get_close_matches(name, [str(other) for other in names], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
