import inspect
import json
import re
import sys

import pytest

from data.base.errors import ConfigError, DataError
from data.config.dataset import StreamConfig
from data.examples.examples import check_example
from data.examples.forms import Conversation, PromptResponse
from data.examples.preprocessing import PREPROCESSORS, preprocessing_source, resolve_preprocessing_fn

TURNS = [{"content": "Add 2, 2.", "role": "user"}, {"content": "4", "role": "assistant"}]
ROWS = {
    "alpaca": {"instruction": "Add.", "input": "2, 2", "output": "4", "text": "..."},
    "dolly": {"instruction": "Add.", "context": "2, 2", "response": "4", "category": "closed_qa"},
    "p3": {"inputs_pretokenized": "Add 2, 2.", "targets_pretokenized": "4", "inputs": [3, 1], "targets": [4, 1]},
    "flan": {"inputs": "Add 2, 2.", "targets": "4", "task": "math_dataset_10templates"},
    "openhermes": {
        "conversations": [
            {"from": "system", "value": "", "weight": None},
            {"from": "human", "value": "Add 2, 2.", "weight": 0.0},
            {"from": "gpt", "value": "4", "weight": 1.0},
        ],
        "source": "platypus",
    },
    "stackmathqa": {"Q": "Add 2, 2.", "A": "4", "meta": {"language": "en"}},
    "numinamath": {"source": "cn_k12", "problem": "Add 2, 2.", "solution": "4", "messages": TURNS},
    "multiple_choice": {"question": "Add 2, 2.", "subject": "math", "choices": ["3", "4"], "answer": 1},
}
"""Rows in the format of the datasets' cards."""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function that writes the source of a user's module `mine`."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> None:
        (tmp_path / "mine.py").write_text(source)
        sys.modules.pop("mine", None)

    yield write
    sys.modules.pop("mine", None)


@pytest.mark.parametrize(
    ("name", "prompt", "response"),
    [
        ("dolly", "### Instruction:\nAdd.\n\n### Context:\n2, 2\n\n### Response:\n", "4"),
        ("p3", "Add 2, 2.", " 4"),
        ("flan", "Add 2, 2.", " 4"),
        ("stackmathqa", "Add 2, 2.\n\n", "4"),
        ("multiple_choice", "Add 2, 2.\nA. 3\nB. 4\nAnswer:", " B"),
    ],
)
def test_registered_functions_convert_their_rows_to_pairs(name, prompt, response):
    assert check_example(PREPROCESSORS[name](ROWS[name])) == PromptResponse(prompt, response)


def test_registered_functions_convert_their_rows_to_conversations():
    assert check_example(PREPROCESSORS["numinamath"](ROWS["numinamath"])) == Conversation(TURNS)
    without = {"problem": "Add 2, 2.", "solution": "4"}
    assert check_example(PREPROCESSORS["numinamath"](without)) == Conversation(TURNS)
    weighted = [TURNS[0] | {"train": False}, TURNS[1] | {"train": True}]
    assert check_example(PREPROCESSORS["openhermes"](ROWS["openhermes"])) == Conversation(weighted)


def test_sharegpt_reads_tool_calls_and_all_names_of_roles():
    call = {"name": "add", "arguments": {"x": 2}}
    turns = [("human", "Add."), ("function_call", json.dumps(call)), ("observation", "4"), ("gpt", "It is 4.")]
    tools = json.dumps([{"name": "add", "parameters": {}}])
    row = {"conversations": [{"from": name, "value": text} for name, text in turns], "system": "Be brief."}
    example = check_example(PREPROCESSORS["sharegpt"](row | {"tools": tools}))
    assert isinstance(example, Conversation)
    assert [message["role"] for message in example.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert example.messages[2]["tool_calls"] == [{"type": "function", "function": call}]
    assert example.tools == json.loads(tools)


def test_columns_that_a_registered_function_does_not_support_are_refused():
    for name, row in (("alpaca", {"history": [["a", "b"]]}), ("alpaca", {"system": "s"}), ("dolly", {"input": "i"})):
        with pytest.raises(DataError, match=r"does not support|but dolly's prompt has only one"):
            PREPROCESSORS[name](ROWS[name] | row)
    made = PREPROCESSORS["dolly"]({"instruction": "Add.", "input": "2, 2", "response": "4"})
    assert made == PREPROCESSORS["dolly"](ROWS["dolly"])


@pytest.mark.parametrize(("name", "column"), [("alpaca", "input"), ("dolly", "context")])
def test_additional_input_of_a_row_is_in_the_prompt(name, column):
    for value in ("2, 2", ""):
        example = check_example(PREPROCESSORS[name](ROWS[name] | {column: value}))
        assert isinstance(example, PromptResponse)
        assert "Add." in example.prompt
        assert ("2, 2" in example.prompt) == ("ontext" in example.prompt) == bool(value)
        assert example.prompt.endswith("### Response:\n")


def test_a_system_turn_with_words_is_kept():
    turns = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    messages = PREPROCESSORS["openhermes"]({"conversations": turns})["messages"]
    assert [turn["role"] for turn in messages] == ["system", "user", "assistant"]


@pytest.mark.parametrize(("prompt", "response", "made"), [("a ", "b", "b"), ("a", "\nb", "\nb"), ("a", "", "")])
def test_a_space_comes_only_where_there_is_none(prompt, response, made):
    assert PREPROCESSORS["flan"]({"inputs": prompt, "targets": response})["response"] == made
    row = {"inputs_pretokenized": prompt, "targets_pretokenized": response}
    assert PREPROCESSORS["p3"](row)["response"] == made


def test_wrong_answers_are_left_out():
    assert PREPROCESSORS["p3"](ROWS["p3"] | {"is_correct": False}) is None
    assert PREPROCESSORS["p3"](ROWS["p3"] | {"is_correct": True}) is not None


@pytest.mark.parametrize(("answer", "letter"), [(0, "A"), (1, "B"), ("A", "A"), (" B", "B")])
def test_an_answer_is_an_index_or_a_letter(answer, letter):
    assert PREPROCESSORS["multiple_choice"](ROWS["multiple_choice"] | {"answer": answer})["response"] == f" {letter}"


@pytest.mark.parametrize("answer", [2, -1, "C", "", "AB", None, True, 1.0])
def test_an_answer_that_is_not_a_choice_is_refused(answer):
    with pytest.raises(DataError, match=r"answer is .*, but it must be an index from 0 or a letter, .*choices are AB"):
        PREPROCESSORS["multiple_choice"](ROWS["multiple_choice"] | {"answer": answer})


def test_dataset_names_are_names_of_the_same_functions():
    names = {name for name in PREPROCESSORS if "/" in name}
    assert names >= {"tatsu-lab/alpaca", "databricks/databricks-dolly-15k", "bigscience/P3", "Muennighoff/flan"}
    assert names >= {"teknium/OpenHermes-2.5", "math-ai/StackMathQA", "AI-MO/NuminaMath-CoT"}
    assert {PREPROCESSORS[name] for name in names} <= {PREPROCESSORS[name] for name in ROWS}
    assert preprocessing_source("tatsu-lab/alpaca") == preprocessing_source("alpaca")


@pytest.mark.parametrize("name", ROWS)
def test_each_function_names_its_card_and_needs_nothing_around_it(name):
    function = PREPROCESSORS[name]
    assert "huggingface.co/datasets/" in function.__doc__
    assert set(function.__code__.co_names) & set(function.__globals__) <= {"DataError"}


def test_columns_are_taken_by_name():
    function = resolve_preprocessing_fn({"prompt": "question", "response": "answer"})
    assert function({"question": "a", "answer": "b", "id": 1}) == {"prompt": "a", "response": "b"}
    with pytest.raises(DataError, match=r"column 'question', .* as the prompt, is missing .*did you mean 'questoin'"):
        function({"questoin": "a", "answer": "b"})


def test_own_functions_are_imported(module):
    module("def make(row):\n    return {'prompt': row, 'response': row}\n")
    assert resolve_preprocessing_fn("mine:make")("a") == {"prompt": "a", "response": "a"}


def test_none_means_that_rows_are_examples():
    assert resolve_preprocessing_fn(None) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            "alpacca",
            "no such function is registered; did you mean 'alpaca'? (registered: alpaca, dolly, p3, flan, sharegpt",
        ),
        ("mine:mak", "mine has no mak; did you mean 'make'?"),
        ("mine:number", "number is not callable (int)"),
        ("no_such_module:f", "no_such_module cannot be imported (ModuleNotFoundError: No module named"),
        ("mine:", "your own function must be written as module:function"),
        (":make", "your own function must be written as module:function"),
        ({"prompt": "a"}, "a mapping must be {prompt: COLUMN, response: COLUMN}"),
    ],
)
def test_invalid_functions_are_refused(module, value, text):
    module("number = 3\ndef make(row):\n    return row\n")
    with pytest.raises(ConfigError) as error:
        resolve_preprocessing_fn(value)
    assert str(error.value).startswith(f"preprocessing_fn is {value!r}, but")
    assert text in str(error.value)


def test_a_module_that_raises_is_named(module):
    module("1 / 0\n")
    with pytest.raises(ConfigError, match=r"mine cannot be imported \(ZeroDivisionError: division by zero\)"):
        resolve_preprocessing_fn("mine:make")


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("import sys; sys.exit(0)", r"exit code 0 \(SystemExit at .*mine.py:1\)"),
        ("import os; os._exit(3)", "exit code 3"),
        ("raise KeyboardInterrupt", r"KeyboardInterrupt at .*mine.py:1"),
    ],
)
def test_a_module_that_ends_the_process_is_named(module, end, how):
    module(f"{end}\ndef make(row):\n    return row\n")
    with pytest.raises(ConfigError, match=f"'mine:make', but importing mine ends the process: {how}: put the code"):
        resolve_preprocessing_fn("mine:make")


def test_the_source_changes_with_the_module_around_the_function(module):
    module("def helper(row):\n    return row\ndef make(row):\n    return helper(row)\n")
    before = preprocessing_source("mine:make")
    assert preprocessing_source("mine:make") == before
    module('"""Mine."""\ndef helper(row):  # as is\n    "A row."\n    return row\ndef make(row): return helper(row)\n')
    assert preprocessing_source("mine:make") == before
    module("def helper(row):\n    return {}\ndef make(row):\n    return helper(row)\n")
    assert preprocessing_source("mine:make") != before


def test_the_source_of_a_registered_function_is_what_it_does(monkeypatch):
    source = inspect.getsource(PREPROCESSORS["flan"])
    before = preprocessing_source("flan")
    reworded = source.replace('"""Muennighoff', '"""The dataset Muennighoff').replace(
        "    apart", "    # A space.\n    apart"
    )
    monkeypatch.setattr("data.examples.preprocessing.inspect.getsource", lambda function: reworded)
    assert reworded != source
    assert preprocessing_source("flan") == before
    monkeypatch.setattr(
        "data.examples.preprocessing.inspect.getsource", lambda function: source.replace('f" {', 'f"  {')
    )
    assert preprocessing_source("flan") != before


def test_sources_differ_between_kinds_of_function():
    values = [None, "alpaca", "dolly", {"prompt": "a", "response": "b"}, {"prompt": "b", "response": "a"}]
    assert len({preprocessing_source(value) for value in values}) == len(values)


def test_a_function_without_source_is_refused():
    with pytest.raises(ConfigError, match=r"numpy.random.mtrand has no Python source"):
        preprocessing_source("numpy.random.mtrand:seed")


STANDARD = (
    "subprocess:call",
    "os:system",
    "os.path:join",
    "builtins:eval",
    "json:loads",
    "posix:system",
    "antigravity:x",
)


@pytest.mark.parametrize("value", STANDARD)
def test_the_standard_library_is_refused_before_anything_is_imported(value, monkeypatch):
    monkeypatch.setattr("data.examples.own_function.importlib.import_module", lambda name: pytest.fail(name))
    module = value.partition(":")[0]
    expected = f"preprocessing_fn is '{value}', but {module} is a module of Python's standard library"
    for name in (lambda: resolve_preprocessing_fn(value), lambda: StreamConfig(hf_name="json", preprocessing_fn=value)):
        with pytest.raises(ConfigError, match=re.escape(expected)):
            name()


@pytest.mark.parametrize(
    ("source", "origin"),
    [
        ("from subprocess import call as make", "subprocess"),
        ("from os import system as make", "posix"),
        ("make = eval", "builtins"),
        ("make = dict", "builtins"),
        ("make = str.lower", "builtins"),
        ("make = 'x'.format", "builtins"),
        ("import functools, os\nmake = functools.partial(functools.partial(os.popen), mode='r')", "os"),
        ("import functools, os\nmake = functools.cache(os.popen)", "os"),
        ("import json\nmake = json.JSONDecoder().decode", "json.decoder"),
        ("import operator\nmake = operator.itemgetter('messages')", "operator"),
    ],
)
def test_a_standard_library_function_from_another_module_is_refused(module, source, origin):
    module(source)
    with pytest.raises(
        ConfigError, match=rf"'mine:make', but make is defined in Python's standard library \({origin}\)"
    ):
        resolve_preprocessing_fn("mine:make")


@pytest.mark.parametrize("name", ["subprocess.call", "make.__globals__", "make.__call__", "Cls.make", "a b", ""])
def test_names_with_attributes_are_refused(module, name):
    module("import subprocess\ndef make(row):\n    return row\n")
    with pytest.raises(ConfigError, match="your own function must be written as module:function"):
        resolve_preprocessing_fn(f"mine:{name}")


@pytest.mark.parametrize("value", ["../x:f", "/abs/x:f", "..:f", "a\0b:f", "a\nb:f", "a\x1bb:f", "x" * 5000 + ":f"])
def test_a_module_is_named_by_a_name(value):
    with pytest.raises(ConfigError, match="your own function must be written as module:function") as caught:
        resolve_preprocessing_fn(value)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


def test_own_functions_in_wrappers_of_the_standard_library_are_accepted(module):
    body = "def add(row, key): return {**row, key: 1}\nclass A:\n    def __call__(self, row): return row\n"
    module(f"import functools\n{body}make = functools.partial(functools.cache(add), key='b')\nother = A()\n")
    assert callable(resolve_preprocessing_fn("mine:make"))
    assert resolve_preprocessing_fn("mine:other")({"a": 1}) == {"a": 1}
