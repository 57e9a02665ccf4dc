"""Convert the rows of a dataset to examples with a function for a known dataset, with the user's `module:function`, or
by selecting columns.

A function returns an example (see examples.py), or None to drop the row. The registered functions are self-contained.
Each docstring shows the columns of a row according to the dataset's card on the Hugging Face hub.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from data.base.errors import ConfigError, DataError, setting
from data.base.paths import shown
from data.base.problems import listed
from data.config.source import mapping_defect
from data.examples.own_function import did_you_mean, import_function, source_of
from data.examples.syntax import canonical

PreprocessingFn = Callable[[Any], Any]


def alpaca(row: Mapping[str, Any]) -> dict[str, str]:
    """tatsu-lab/alpaca: `{instruction, input, output, text}`; input is "" or missing in rows whose instruction needs no
    input.

    The prompt is the same as in Alpaca's column `text`. Card: huggingface.co/datasets/tatsu-lab/alpaca
    """
    for column in ("system", "system_prompt", "history"):
        if row.get(column):
            raise DataError(f"has {column}, which alpaca's prompt does not support: write your own function")
    given = row.get("input") or ""
    intro = "Below is an instruction that describes a task"
    more = ", paired with an input that provides further context" if given else ""
    context = f"### Input:\n{given}\n\n" if given else ""
    ask = "Write a response that appropriately completes the request."
    prompt = f"{intro}{more}. {ask}\n\n### Instruction:\n{row['instruction']}\n\n{context}### Response:\n"
    return {"prompt": prompt, "response": row["output"]}


def dolly(row: Mapping[str, Any]) -> dict[str, str]:
    """databricks/databricks-dolly-15k: `{instruction, context, response, category}`; context is often "" or missing.
    Some copies call this column `input`.

    Card: huggingface.co/datasets/databricks/databricks-dolly-15k
    """
    given = [row[column] for column in ("context", "input") if row.get(column)]
    if len(given) > 1:
        raise DataError("has both context and input, but dolly's prompt has only one: write your own function")
    context = f"### Context:\n{given[0]}\n\n" if given else ""
    prompt = f"### Instruction:\n{row['instruction']}\n\n{context}### Response:\n"
    return {"prompt": prompt, "response": row["response"]}


def p3(row: Mapping[str, Any]) -> dict[str, str] | None:
    """bigscience/P3: `{inputs_pretokenized, targets_pretokenized, inputs, targets}`, in some subsets also
    `{answer_choices, idx, weight, is_correct}`. `inputs` and `targets` are T5's token ids.

    Rows whose is_correct is false contain a wrong answer (for ranking) and are dropped. A space is inserted between the
    two texts if there is no space yet. Card: huggingface.co/datasets/bigscience/P3
    """
    if row.get("is_correct") is False:
        return None
    prompt, response = row["inputs_pretokenized"], row["targets_pretokenized"]
    apart = prompt[-1:].isspace() or response[:1].isspace()
    return {"prompt": prompt, "response": response if apart or not response else f" {response}"}


def flan(row: Mapping[str, Any]) -> dict[str, str]:
    """Muennighoff/flan and Muennighoff/P3: `{inputs, targets, task}`; conceptofmind's FLAN: `{inputs, targets,
    task_source, task_name, template_type}`.

    A space is inserted between the two texts if there is no space yet. Card: huggingface.co/datasets/Muennighoff/flan
    """
    prompt, response = row["inputs"], row["targets"]
    apart = prompt[-1:].isspace() or response[:1].isspace()
    return {"prompt": prompt, "response": response if apart or not response else f" {response}"}


def sharegpt(row: Mapping[str, Any]) -> dict[str, Any]:
    """ShareGPT's conversations in their common variants: `{conversations: [{from, value}, ...], system, tools}`.

    The column may also be `conversation` or `messages`. A turn may also be `{role, content}`, `{input, output}` (user
    and assistant), or a string (the user's and the assistant's turns alternate). These roles are accepted, in upper or
    lower case: system; human, user, prompter; gpt, chatgpt, bing, bard, chatbot, bot, model, assistant; function_call,
    whose text is JSON of `{name, arguments}`; observation, tool, function, function_response, tool_response. The keys
    `weight` and `train` of a turn are kept, and `tools` may be JSON text. Card:
    huggingface.co/datasets/teknium/OpenHermes-2.5
    """
    of_assistant = ("gpt", "chatgpt", "bing", "bard", "chatbot", "bot", "model", "assistant", "function_call")
    of_tool = ("observation", "tool", "function", "function_response", "tool_response")
    roles = {
        "system": "system",
        **dict.fromkeys(("human", "user", "prompter"), "user"),
        **dict.fromkeys(of_assistant, "assistant"),
        **dict.fromkeys(of_tool, "tool"),
    }
    column = next((name for name in ("conversations", "conversation", "messages") if row.get(name) is not None), None)
    if column is None:
        raise DataError("has none of the columns conversations, conversation and messages")
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(row[column]):
        if isinstance(turn, str):
            messages.append({"role": ("user", "assistant")[number % 2], "content": turn})
            continue
        if "input" in turn and "output" in turn:
            messages.append({"role": "user", "content": turn["input"]})
            messages.append({"role": "assistant", "content": turn["output"]})
            continue
        by = next((key for key in ("from", "role") if key in turn), None)
        of = next((key for key in ("value", "content") if key in turn), None)
        if by is None or of is None:
            raise DataError(
                f"{column}[{number}] has {', '.join(turn)}, but a turn must be {{from, value}} or {{role, content}}"
            )
        role, text = str(turn[by]).lower(), turn[of]
        content = {"content": None, "tool_calls": text} if role == "function_call" else {"content": text}
        more = {key: value for key, value in turn.items() if key not in (by, of)}
        messages.append({**more, "role": roles.get(role, turn[by]), **content})
    system = row.get("system") or row.get("system_prompt")
    if system and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return {"messages": messages, **({"tools": row["tools"]} if row.get("tools") is not None else {})}


def stackmathqa(row: Mapping[str, Any]) -> dict[str, str]:
    """math-ai/StackMathQA: `{Q, A, meta}`, a question from Stack Exchange and one of its answers.

    The subset stackmathqafull-qalist has `{Q, A_List, meta}`, which is not supported. A blank line is inserted between
    question and answer. Card: huggingface.co/datasets/math-ai/StackMathQA
    """
    return {"prompt": f"{row['Q']}\n\n", "response": row["A"]}


def numinamath(row: Mapping[str, Any]) -> dict[str, Any]:
    """AI-MO/NuminaMath-CoT: `{source, problem, solution, messages: [{content, role}, ...]}`. messages contain the
    problem (user) and the solution (assistant); if messages are missing, they are made from the columns problem and
    solution.

    Card: huggingface.co/datasets/AI-MO/NuminaMath-CoT
    """
    if row.get("messages") is not None:
        return {"messages": row["messages"]}
    turns = (("user", row["problem"]), ("assistant", row["solution"]))
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def multiple_choice(row: Mapping[str, Any]) -> dict[str, str]:
    """`{question, choices: [text, ...], answer}`, where answer is the zero-based index of a choice, or its letter.

    The prompt lists the choices with the letters A, B, C, ... and ends with `Answer:`. The response is the letter of
    the answer. MMLU has these columns; its answer is an index. Card: huggingface.co/datasets/cais/mmlu
    """
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(row["choices"])]
    answer = row["answer"]
    if isinstance(answer, str):
        letter = answer.strip()
    else:
        letter = letters[answer : answer + 1] if type(answer) is int and answer >= 0 else ""
    if len(letter) != 1 or letter not in letters:
        raise DataError(
            f"answer is {answer!r}, but it must be an index from 0 or a letter, and the choices are {letters}"
        )
    choices = "\n".join(f"{name}. {choice}" for name, choice in zip(letters, row["choices"], strict=True))
    return {"prompt": f"{row['question']}\n{choices}\nAnswer:", "response": f" {letter}"}


PREPROCESSORS: dict[str, PreprocessingFn] = {
    "alpaca": alpaca,
    "dolly": dolly,
    "p3": p3,
    "flan": flan,
    "sharegpt": sharegpt,
    "openhermes": sharegpt,
    "stackmathqa": stackmathqa,
    "numinamath": numinamath,
    "multiple_choice": multiple_choice,
    # Names of datasets, as in LLM Foundry.
    "tatsu-lab/alpaca": alpaca,
    "databricks/databricks-dolly-15k": dolly,
    "bigscience/P3": p3,
    "Muennighoff/P3": flan,
    "Muennighoff/flan": flan,
    "teknium/OpenHermes-2.5": sharegpt,
    "math-ai/StackMathQA": stackmathqa,
    "AI-MO/NuminaMath-CoT": numinamath,
}


def resolve_preprocessing_fn(value: str | Mapping[str, str] | None) -> PreprocessingFn | None:
    """The function that a config specifies as a registered name, `module:function`, or a mapping of columns such as
    {prompt: column, response: column}.

    None if rows are already examples. Raises ConfigError if the function does not exist, or if it is defined in
    Python's standard library, even if it is imported from another module.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return import_function(value, "preprocessing_fn") if is_own(value) else _registered(value)
    if (defect := mapping_defect(value)) is not None:
        raise ConfigError(defect, key="preprocessing_fn")
    return TakeColumns(value)


def is_own(value: str | Mapping[str, str] | None) -> bool:
    """Whether the value specifies a user's own function, as `module:function`."""
    return isinstance(value, str) and ":" in value


def preprocessing_source(value: str | Mapping[str, str] | None) -> str:
    """A text for fingerprints. The text changes if the behavior of the function may have changed, but not if only
    docstrings or comments have changed.

    For a registered function, which is self-contained, this is the source of the function. For `module:function`, it is
    the source of the whole module, because the function may call other functions in the module.
    """
    function = resolve_preprocessing_fn(value)
    if function is None:
        return ""
    if not isinstance(value, str):
        return json.dumps(dict(value or {}), sort_keys=True)
    if value in PREPROCESSORS:
        return canonical(inspect.getsource(function))
    return source_of(value, function, "preprocessing_fn")


@dataclass(frozen=True)
class TakeColumns:
    """Makes an example from the specified columns. Raises DataError for a row in which one of these columns is
    missing."""

    columns: Mapping[str, str]
    """Maps each key of the example to a column."""

    def __call__(self, row: Any) -> dict[str, Any]:
        if not isinstance(row, Mapping):
            raise DataError(f"the row has type {type(row).__name__}, but it must be an object with columns")
        for key, column in self.columns.items():
            if column not in row:
                raise DataError(
                    f"column {column!r}, which {setting('preprocessing_fn')} uses as the {key}, is missing (the "
                    f"row has {listed(map(str, row)) or 'no columns'}){did_you_mean(column, row)}"
                )
        return {key: row[column] for key, column in self.columns.items()}


def _registered(name: str) -> PreprocessingFn:
    if name not in PREPROCESSORS:
        raise ConfigError(
            f"is {shown(name)}, but no such function is registered{did_you_mean(name, PREPROCESSORS)} "
            f"(registered: {', '.join(PREPROCESSORS)}; write your own as module:function)",
            key="preprocessing_fn",
        )
    return PREPROCESSORS[name]
