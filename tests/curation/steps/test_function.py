"""The user's own functions as steps."""

import pickle
import sys

import pytest

from data.base.errors import ConfigError, DataError
from data.curation.base.document import KEPT, Document, Verdict
from data.curation.steps.function import Function


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function that writes the source of a user's module `mine`."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str) -> None:
        (tmp_path / "mine.py").write_text(source)
        sys.modules.pop("mine", None)

    yield write
    sys.modules.pop("mine", None)


def judge(text: str, **arguments) -> Verdict:
    step = Function(function="mine:judge", arguments=arguments)
    step.check()
    return step.judge()(Document(5, "web", "a.jsonl", 70, text, 3, {"x.y": 0.5}))


@pytest.mark.parametrize(
    ("returned", "verdict"),
    [
        ("True", KEPT),
        ("document['text']", KEPT),
        ("numpy.bool_(True)", KEPT),
        ("'new'", Verdict(text="new", changes=1)),
        ("False", Verdict(reason="mine:judge", detail="returned False")),
        ("None", Verdict(reason="mine:judge", detail="returned None")),
        ("''", Verdict(reason="mine:judge", detail="returned an empty text")),
    ],
)
def test_the_returned_value_is_the_verdict(module, returned, verdict):
    module(f"import numpy\ndef judge(document):\n    return {returned}\n")
    assert judge("old") == verdict


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("return 1", r"mine:judge returned 1, which is of type int, but it must return the text, True, False or None"),
        ("return document", "mine:judge returned .*, which is of type dict"),
        ("document['text'] = 'b'; return True", r"changed document\['text'\] and returned True: return the new text"),
        ("return '\\ud800'", "lone surrogates"),
        ("raise SystemExit(3)", r"mine:judge ended its process: SystemExit\(3\)"),
    ],
)
def test_other_values_are_errors(module, body, error):
    module(f"def judge(document):\n    {body}\n")
    with pytest.raises(DataError, match=error):
        judge("a")


def test_the_function_receives_the_document_and_the_arguments(module):
    module("def judge(document, *, suffix, sep='-'):\n    return repr(document) + sep + suffix\n")
    found = judge("a", suffix="x").text
    document = {"source": "web", "file": "a.jsonl", "position": 70, "text": "a", "n_tokens": 3, "scores": {"x.y": 0.5}}
    assert found == f"{document!r}-x"


@pytest.mark.parametrize(
    ("signature", "arguments", "key", "text"),
    [
        ("document, min_length", {"min_lenght": 3}, "min_lenght", "did you mean min_length? (accepted: min_length)"),
        ("document", {"a": 1}, "a", "is not an argument of mine:judge (it accepts no arguments)"),
        ("document", {"document": 1}, "document", "is not an argument"),
        ("document, min_length", {}, "min_length", "is missing, but mine:judge requires this argument"),
        ("", {}, "function", "is 'mine:judge', which has no parameter for the document"),
        ("**rest", {}, "function", "is 'mine:judge', which has no parameter for the document"),
        ("document, other, /", {}, "function", "several required positional-only parameters"),
    ],
)
def test_arguments_are_checked_before_the_function_is_called(module, signature, arguments, key, text):
    module(f"def judge({signature}):\n    raise AssertionError\n")
    with pytest.raises(ConfigError) as raised:
        Function(function="mine:judge", arguments=arguments).check()
    assert text in str(raised.value)
    errors = getattr(raised.value, "errors", (raised.value,))
    assert key in [error.key for error in errors]


@pytest.mark.parametrize("signature", ["document, **rest", "*documents, a", "document, a=1", "document, /, a"])
def test_accepted_arguments_are_no_errors(module, signature):
    module(f"def judge({signature}):\n    return True\n")
    assert judge("x", a=2) == KEPT


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mine:juge", "mine has no juge; did you mean 'judge'?"),
        ("os:system", "standard library, which has no function that filters documents"),
        ("no_such_module:f", "cannot be imported"),
    ],
)
def test_functions_that_cannot_be_used_are_refused(module, name, text):
    module("def judge(document):\n    return True\n")
    with pytest.raises(ConfigError) as raised:
        Function(function=name).check()
    assert raised.value.key == "function"
    assert text in str(raised.value)


def test_made_from_changes_with_code_and_arguments_and_not_with_comments(module):
    step = Function(function="mine:judge", arguments={"a": 1})
    made = []
    for body in ("return True", "return True  # always", "return False"):
        module(f"def judge(document, a):\n    {body}\n")
        made.append(step.made_from())
    assert made[0] == made[1] != made[2]
    assert Function(function="mine:judge", arguments={"a": 2}).made_from() != step.made_from()


def test_the_function_is_sent_to_processes_that_cannot_import_it(module):
    cloudpickle = pytest.importorskip("pyspark.cloudpickle")
    module("def helper(text):\n    return text + '!'\ndef judge(document):\n    return helper(document['text'])\n")
    step = Function(function="mine:judge")
    modules = step.modules()
    assert modules == (sys.modules["mine"],)
    cloudpickle.register_pickle_by_value(modules[0])
    try:
        sent = cloudpickle.dumps(step)
    finally:
        cloudpickle.unregister_pickle_by_value(modules[0])
    module("raise ImportError")
    received = pickle.loads(sent)
    assert received == step
    assert received.judge()(Document(1, "web", "a", 0, "a", 1, {})).text == "a!"
