import pickle

import numpy as np
import pytest
import yaml

from data.base.errors import DataError
from data.base.problems import Problem, Reading
from data.examples.examples import check_example, read_examples
from data.examples.forms import Conversation, PromptResponse, Text, TokenTurns
from data.examples.preprocessing import resolve_preprocessing_fn

GOOD = {"prompt": "2 + 2?", "response": "4"}
TEXT = {"text": "Once."}
USER, ANSWER = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
SYSTEM, TOOL = {"role": "system", "content": "Add."}, {"role": "tool", "content": "4"}
CHAT = {"messages": [USER, ANSWER]}


def read(rows, preprocess=None, **reading):
    """The examples of rows at row 1, row 2, ..., and the result of reading them."""
    reading = Reading(**reading)
    places = ((f"row {n}", row) for n, row in enumerate(rows, start=1))
    return [example for _, example in read_examples(places, preprocess, reading)], reading


def error_of(rows, preprocess=None) -> str:
    with pytest.raises(DataError) as error:
        read(rows, preprocess)[1].raise_if_any()
    return str(error.value)


def turn(role="user", **changes):
    return {"role": role, "content": "words"} | changes


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"prompt": "a", "completion": "b", "id": 3}, PromptResponse("a", "b")),
        ({"text": "a", "url": "b"}, Text("a")),
        (CHAT, Conversation([USER, ANSWER])),
        ({"messages": np.array([SYSTEM, USER, ANSWER], dtype=object)}, Conversation([SYSTEM, USER, ANSWER])),
        ({"messages": [USER | {"name": "Ann"}, ANSWER]}, Conversation([USER, ANSWER])),
        (
            {"messages": [USER, ANSWER, TOOL, TOOL, ANSWER]},
            Conversation([USER, ANSWER, TOOL, TOOL, ANSWER]),
        ),
        ({"messages": [SYSTEM, ANSWER]}, Conversation([SYSTEM, ANSWER])),
    ],
)
def test_each_form_is_an_example(row, example):
    assert check_example(row) == example


@pytest.mark.parametrize("ids", [[1, 2], np.array([1, 2], dtype=np.int32), (1, 2), np.array([1, 2], dtype=np.uint16)])
def test_turns_of_token_ids_are_an_example(ids):
    example = check_example({"turns": [{"input_ids": ids, "labels": [3], "attention_mask": [1, 1]}]})
    assert isinstance(example, TokenTurns)
    ((prompt, response),) = example.turns
    assert (prompt.tolist(), response.tolist(), prompt.dtype) == ([1, 2], [3], np.int64)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"response": None}, "response is null, but it must be text"),
        ({"response": 12}, "response is 12 (int), but it must be text in quotes"),
        ({"response": ["4"]}, "response is ['4'] (list), but it must be text"),
        ({"response": ""}, "response is empty: fill it in"),
        ({"response": " \n"}, "response is only whitespace (' \\n'): fill it in"),
        ({"response": "a\ud800"}, "it contains a lone surrogate"),
        ({"completion": "5"}, "has both response and completion"),
        ({"prompt": True}, "prompt is True (bool)"),
        ({"prompt": "x" * 99 + "\ud800"}, "prompt is 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..., but"),
        ({"messages": []}, "has prompt and response and messages, but an example must have exactly one form"),
        ({"text": "a"}, "has prompt and response and text, but an example must have exactly one form"),
    ],
)
def test_each_defect_of_a_row_is_reported(change, text):
    (problem,) = check_example(GOOD | change)
    assert text in problem.text


@pytest.mark.parametrize("value", [None, 12, ["a"], "", " ", "a\udfff"])
def test_a_text_is_checked_like_a_prompt(value):
    (problem,) = check_example({"text": value})
    (same,) = check_example({"prompt": value, "response": "b"})
    assert problem == Problem(same.kind.replace("prompt", "text"), same.text.replace("prompt", "text"))


def test_text_next_to_a_known_datasets_columns_is_refused():
    alpaca = {"instruction": "Add.", "input": "1 1", "output": "2", "text": "Add. 1 1 2"}
    (problem,) = check_example(alpaca)
    assert "has instruction, output in addition to text, and all tokens of the text would be trained on" in problem.text
    assert "preprocessing_fn: alpaca" in problem.text
    assert check_example(alpaca, "the result of preprocessing_fn") == Text(alpaca["text"])


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([], "messages is empty, but a conversation requires at least a question and the assistant's answer"),
        ([USER], "messages is only one turn, but"),
        ("hello", "messages is 'hello', but it must be a list of {role, content}"),
        (None, "messages is None, but it must be a list"),
        ({"role": "user"}, "(dict), but it must be a list"),
        (
            [USER, ANSWER, USER],
            "messages[2] (user) is the last message, but a conversation must end with the assistant",
        ),
        ([USER, USER, ANSWER], "messages[1] (user) follows another turn of the user: join the two turns"),
        ([USER, ANSWER, ANSWER], "messages[2] (assistant) follows another turn of the assistant"),
        ([USER, SYSTEM, ANSWER], "messages[1] (system) is not the first message"),
        ([SYSTEM, SYSTEM, USER, ANSWER], "messages[1] (system) is not the first message"),
        (
            [ANSWER, USER, ANSWER],
            "messages[0] (assistant) is the first message, but a conversation must begin with system or user",
        ),
        ([USER, TOOL, ANSWER], "messages[1] (tool) follows the user, but a tool's result must follow the assistant"),
        ([USER, "4"], "messages[1] is '4', but it must be an object with role and content"),
        ([turn("human"), ANSWER], "messages[0].role is 'human', but it must be one of system, user, assistant, tool"),
        ([turn(["user"]), ANSWER], "messages[0].role is ['user'] (list), but it must be one of"),
        ([turn(None), ANSWER], "messages[0].role is None"),
        ([turn(content=None), ANSWER], "messages[0] (user).content is null, but it must be text"),
        ([turn(content=12), ANSWER], "messages[0] (user).content is 12 (int)"),
        ([turn(content=["a"]), ANSWER], "messages[0] (user).content is ['a'] (list)"),
        ([USER, turn("assistant", content="")], "messages[1] (assistant).content is empty"),
        ([turn(content=" \t"), ANSWER], "messages[0] (user).content is only whitespace (' \\t')"),
        ([turn(content="a\ud800"), ANSWER], "messages[0] (user).content is 'a\\ud800', but it contains a lone"),
        ([{"role": "user"}, ANSWER], "messages[0] has no content (it has role)"),
        (
            [{"from": "human", "value": "a"}, ANSWER],
            "(it has from, value) (for these columns: preprocessing_fn: sharegpt)",
        ),
    ],
)
def test_each_defect_of_messages_names_the_turn(messages, text):
    (problem,) = check_example({"messages": messages})
    assert text in problem.text


def test_all_wrong_messages_of_a_row_are_named():
    problems = check_example({"messages": [turn(content=""), ANSWER, turn("bot", content=3)]})
    assert [problem.kind for problem in problems] == ["content is empty", "unknown role", "content is not text (int)"]


@pytest.mark.parametrize(
    ("turns", "text"),
    [
        ([], "turns is [] (list), but it must be a list of {input_ids, labels}"),
        ("a", "turns is 'a', but it must be a list"),
        ([3], "turns[0] is 3 (int), but it must be an object with input_ids and labels"),
        ([{"input_ids": [1]}], "turns[0] has input_ids, but it must be an object with input_ids and labels"),
        ([{"input_ids": [1], "labels": []}], "turns[0].labels is [] (list), but it must be a list of at least one"),
        ([{"input_ids": [1.5], "labels": [1]}], "turns[0].input_ids is [1.5] (list), but"),
        ([{"input_ids": [[1]], "labels": [1]}], "turns[0].input_ids is [[1]] (list), but"),
        ([{"input_ids": [[1], [1, 2]], "labels": [1]}], "turns[0].input_ids is [[1], [1, 2]] (list), but"),
        ([{"input_ids": [1 << 80], "labels": [1]}], "(list), but it must be a list of at least one token id"),
        ([{"input_ids": "12", "labels": [1]}], "turns[0].input_ids is '12', but"),
    ],
)
def test_each_defect_of_turns_is_reported(turns, text):
    (problem,) = check_example({"turns": turns})
    assert text in problem.text


def test_missing_fields_are_reported_with_the_present_ones_and_a_fix():
    problems = check_example({"question": "2 + 2?", "reply": "4"})
    assert [problem.kind for problem in problems] == ["prompt and response are missing"]
    assert "(the row has question, reply)" in problems[0].text
    assert "preprocessing_fn: {prompt: COLUMN, response: COLUMN}" in problems[0].text
    assert problems[0].text.endswith("or create the columns with your own function (module:function)")


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "id": 1}, "sharegpt"),
        ({"conversation": [USER, ANSWER]}, "sharegpt"),
        ({"instruction": "a", "input": "b", "output": "c"}, "alpaca"),
        ({"instruction": "a", "output": "c"}, "alpaca"),
        ({"instruction": "a", "context": "", "response": "c", "category": "x"}, "dolly"),
        ({"instruction": "a", "response": "c"}, "dolly"),
        ({"inputs_pretokenized": "a", "targets_pretokenized": "b", "inputs": [1], "targets": [2]}, "p3"),
        ({"inputs": "a", "targets": "b", "task": "c"}, "flan"),
        ({"Q": "a", "A": "b", "meta": {}}, "stackmathqa"),
        ({"problem": "a", "solution": "b"}, "numinamath"),
        ({"question": "a", "choices": ["b", "c"], "answer": 1}, "multiple_choice"),
        ({"question": "a", "answer": "b"}, "{prompt: question, response: answer}"),
        ({"input": "a", "output": "b"}, "{prompt: input, response: output}"),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [ANSWER]}, "{prompt: prompt, response: chosen}"),
        ({"messages": [USER, ANSWER], "system": "Be brief."}, "sharegpt"),
        ({"messages": [{"role": "Human", "content": "a"}, {"role": "Chatbot", "content": "b"}]}, "sharegpt"),
        ({"conversation": [{"input": "a", "output": "b"}, {"input": "c", "output": "d"}]}, "sharegpt"),
        ({"conversations": ["a", "b"], "source": "c"}, "sharegpt"),
    ],
)
def test_the_preprocessing_function_that_an_error_suggests_reads_the_row(row, name):
    text = check_example(row)[0].text
    assert text.endswith(f"(for these columns: preprocessing_fn: {name})")
    preprocess = resolve_preprocessing_fn(yaml.safe_load(name))
    examples, reading = read([row], preprocess)
    assert (len(examples), reading.bad_rows) == (1, 0)


@pytest.mark.parametrize("column", ["system", "system_prompt", "context", "tools", "reasoning_content"])
def test_two_columns_are_not_suggested_where_they_would_leave_out_a_third(column):
    text = check_example({"question": "a", "answer": "b", column: "c"})[0].text
    assert "for these columns" not in text
    assert "or create the columns with your own function (module:function)" in text


def test_columns_that_a_mapping_does_not_take_are_counted():
    rows = [{"question": "a", "answer": "b", "thoughts": "c", "id": None}]
    for mapping, form in (({"prompt": "question", "response": "answer"}, PromptResponse), ({"text": "thoughts"}, Text)):
        examples, reading = read(rows, resolve_preprocessing_fn(mapping))
        assert isinstance(examples[0], form)
        assert set(reading.ignored) == {"question", "answer", "thoughts"} - set(mapping.values())


@pytest.mark.parametrize(
    "row", [{"conversations": "a"}, {"instruction": "a", "output": 5}, {"inputs": [1], "targets": [2]}]
)
def test_a_function_that_would_not_read_the_row_is_not_suggested(row):
    assert "for these columns" not in check_example(row)[0].text


@pytest.mark.parametrize("row", [[GOOD], "text", 3, None])
def test_a_row_must_be_an_object(row):
    assert "it must be an object with prompt and response, messages, text or turns" in check_example(row)[0].text


def test_all_bad_rows_are_reported_together():
    text = error_of([GOOD] + [{"prompt": "a", "response": ""}] * 30 + [Problem("not JSON", "is not JSON"), GOOD])
    assert text.startswith("31 rows cannot be used:\n")
    first, second = text.splitlines()[1:]
    assert first.startswith("  row 2: response is empty: ")
    assert first.endswith(" (and 29 more rows, such as row 3 and row 4)")
    assert second == "  row 32: is not JSON"


def test_few_rows_with_the_same_problem_are_all_named():
    assert error_of([{"prompt": "a"}] * 2).endswith(" (and 1 more row: row 2)")


def test_kinds_of_problems_beyond_the_first_are_counted():
    text = error_of([Problem(f"kind {number % 22}", "is bad") for number in range(66)])
    assert len(text.splitlines()) == 22
    assert text.endswith("... and 6 problems of 2 more kinds")


def test_a_row_of_another_form_is_refused_with_both_forms():
    examples, reading = read([GOOD, CHAT, GOOD, TEXT])
    assert [example.form for example in examples] == ["prompt and response"] * 2
    assert (reading.form, reading.n_valid, reading.bad_rows) == ("prompt and response", 2, 2)
    assert reading.lines()[0].startswith(
        "row 2: has messages, but earlier rows have prompt and response (first: row 1)"
    )


def test_the_form_may_be_given():
    examples, reading = read([TEXT], form="messages", first_place="a.jsonl:1")
    assert examples == []
    assert reading.lines()[0].startswith("row 1: has text, but earlier rows have messages (first: a.jsonl:1)")


def test_bad_rows_do_not_decide_the_form():
    examples, reading = read([{"messages": []}, TEXT])
    assert [example.form for example in examples] == ["text"]
    assert reading.bad_rows == 1


def test_further_columns_are_counted():
    rows = [CHAT | {"id": 1}, {"messages": [USER | {"name": "A"}, ANSWER | {"score": 2, "name": "B"}], "id": 2}]
    assert read(rows)[1].ignored == {"id": 2, "messages[].score": 1, "messages[].name": 1}


def test_ignored_columns_can_be_printed():
    row = {"prompt": "a", "response": "b", "\ud800": 1}
    assert read([row])[1].ignored == {"\\ud800": 1}


def test_examples_have_their_places():
    reading = Reading()
    rows = (("here", GOOD), ("there", {}), ("yonder", GOOD))
    assert [place for place, _ in read_examples(rows, None, reading)] == ["here", "yonder"]
    assert reading.first_place == "here"


def test_merged_parts_equal_one_reading():
    rows = [GOOD, {"prompt": ""}, CHAT, None, GOOD | {"id": 1}, *[{"response": "a"}] * 30]

    def preprocess(row):
        return row

    whole, merged = read(rows, preprocess)[1], Reading()
    for start in range(0, len(rows), 4):
        part = Reading(form=merged.form, first_place=merged.first_place)
        places = ((f"row {n}", row) for n, row in enumerate(rows[start : start + 4], start=start + 1))
        list(read_examples(places, preprocess, part))
        merged.merge(pickle.loads(pickle.dumps(part)))
    assert merged == whole
    assert (merged.n_dropped, merged.n_valid) == (1, 2)


def test_parts_of_different_forms_are_refused_when_they_are_merged():
    reading = read([GOOD])[1]
    reading.merge(read([CHAT, CHAT, {}])[1])
    assert (reading.form, reading.n_valid, reading.bad_rows) == ("prompt and response", 1, 3)
    assert "row 1: has messages, but earlier rows have prompt and response" in reading.lines()[0]
    assert "(and 1 more row)" in reading.lines()[0]


def test_exceptions_of_preprocessing_name_row_and_line():
    text = error_of([{"q": "x"}], lambda row: {"prompt": row["question"]})
    assert "row 1: preprocessing_fn raised KeyError: 'question' at " in text
    assert "test_examples.py:" in text
    assert "the row has q" in text


def test_what_preprocessing_returns_is_checked():
    text = error_of([{"q": "x"}], lambda row: {"prompt": row["q"], "answer": "y"})
    assert "response is missing (the result of preprocessing_fn has prompt, answer)" in text


def test_rows_for_which_preprocessing_returns_none_are_counted():
    examples, reading = read([GOOD, TEXT], lambda row: row if "prompt" in row else None)
    assert (len(examples), reading.n_dropped, reading.bad_rows) == (1, 1, 0)
