import sys

import pytest

from data.errors import ConfigError, DataError
from data.examples import Example, check_example
from data.preprocessing import PREPROCESSORS, preprocessing_source, resolve_preprocessing_fn

ROWS = {
    "alpaca": {"instruction": "Add.", "input": "2, 2", "output": "4", "text": "..."},
    "dolly": {"instruction": "Add.", "context": "2, 2", "response": "4", "category": "closed_qa"},
}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A user's module `mine`; writes its source."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> None:
        (tmp_path / "mine.py").write_text(source)
        sys.modules.pop("mine", None)

    yield write
    sys.modules.pop("mine", None)


@pytest.mark.parametrize("name", PREPROCESSORS)
@pytest.mark.parametrize("with_context", [True, False])
def test_registered_functions_make_examples_of_their_rows(name, with_context):
    row = dict(ROWS[name])
    if not with_context:
        row["input" if name == "alpaca" else "context"] = ""
    example = check_example(PREPROCESSORS[name](row))
    assert isinstance(example, Example)
    assert example.response == "4"
    assert "Add." in example.prompt
    assert ("2, 2" in example.prompt) == with_context
    assert example.prompt.endswith("### Response:\n")


def test_columns_are_taken_by_name():
    function = resolve_preprocessing_fn({"prompt": "question", "response": "answer"})
    assert function({"question": "a", "answer": "b", "id": 1}) == {"prompt": "a", "response": "b"}
    with pytest.raises(DataError, match=r"column 'question' is missing, .* for the prompt .*did you mean 'questoin'"):
        function({"questoin": "a", "answer": "b"})


def test_a_function_of_ones_own(module):
    module("def make(row):\n    return {'prompt': row, 'response': row}\n")
    assert resolve_preprocessing_fn("mine:make")("a") == {"prompt": "a", "response": "a"}


def test_none_means_that_rows_are_examples():
    assert resolve_preprocessing_fn(None) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("alpacca", "there is no such function; did you mean 'alpaca'? (registered: alpaca, dolly"),
        ("mine:mak", "mine has no mak; did you mean 'make'?"),
        ("mine:number", "number is not callable (int)"),
        ("no_such_module:f", "no_such_module cannot be imported (ModuleNotFoundError: No module named"),
        ("mine:", "one of your own is written module:function"),
        (":make", "one of your own is written module:function"),
        ({"prompt": "a"}, "a mapping must be {prompt: COLUMN, response: COLUMN}"),
    ],
)
def test_what_is_no_function_is_refused(module, value, text):
    module("number = 3\ndef make(row):\n    return row\n")
    with pytest.raises(ConfigError) as error:
        resolve_preprocessing_fn(value)
    assert str(error.value).startswith(f"preprocessing_fn is {value!r}, but")
    assert text in str(error.value)


def test_a_module_that_raises_is_named(module):
    module("1 / 0\n")
    with pytest.raises(ConfigError, match=r"mine cannot be imported \(ZeroDivisionError: division by zero\)"):
        resolve_preprocessing_fn("mine:make")


def test_the_source_changes_with_the_module_around_the_function(module):
    module("def helper(row):\n    return row\ndef make(row):\n    return helper(row)\n")
    before = preprocessing_source("mine:make")
    assert preprocessing_source("mine:make") == before
    module("def helper(row):\n    return {}\ndef make(row):\n    return helper(row)\n# changed\n")
    assert preprocessing_source("mine:make") != before


def test_sources_differ_between_kinds_of_function():
    values = [None, "alpaca", "dolly", {"prompt": "a", "response": "b"}, {"prompt": "b", "response": "a"}]
    assert len({preprocessing_source(value) for value in values}) == len(values)


def test_a_function_without_source_is_refused():
    with pytest.raises(ConfigError, match="builtins has no Python source"):
        preprocessing_source("builtins:dict")
