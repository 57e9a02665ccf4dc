"""Conversations in all formats used by datasets."""

import json

import numpy as np
import pytest

from data.base.problems import Reading
from data.examples.examples import check_example, read_examples
from data.examples.forms import Conversation, PromptResponse
from data.examples.messages import read_messages

USER, ANSWER = {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}
SYSTEM, RESULT = {"role": "system", "content": "Add."}, {"role": "tool", "content": "4"}
CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"x": 2}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


def part(text: str) -> dict:
    return {"type": "text", "text": text}


def problem_of(row) -> str:
    problems = check_example(row)
    assert isinstance(problems, list)
    return "\n".join(problem.text for problem in problems)


def test_null_columns_count_as_missing():
    messages = [USER, ANSWER]
    for row in ({"prompt": None, "response": None, "text": None}, {"completion": None}):
        assert check_example({**row, "messages": messages}) == Conversation(messages)
    assert check_example({"prompt": "a", "response": None, "completion": "b"}) == PromptResponse("a", "b")
    assert "prompt is null" in check_example({"prompt": None, "response": None})[0].text
    assert "messages is None" in problem_of({"messages": None})


def test_messages_may_be_json_text():
    messages = [USER, {"role": "assistant", "content": "[4]"}]
    assert check_example({"messages": json.dumps(messages)}) == Conversation(messages)
    assert "messages is '[{broken'" in problem_of({"messages": "[{broken"})


def test_parts_of_text_are_joined_as_they_are():
    parts = np.array([part("2 "), part("+ 2?")], dtype=object)
    assert read_messages([{"role": "user", "content": parts}, ANSWER]) == [USER, ANSWER]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([part("a"), {"type": "image_url", "image_url": {}}], "content[1] is of type 'image_url', but only parts"),
        ([part("a"), {"type": "text"}], "content[1] is {'type': 'text'} (dict), but only parts {type: text"),
        ([part(" "), part("")], "content is only whitespace"),
    ],
)
def test_other_parts_are_named(content, text):
    assert text in problem_of({"messages": [{"role": "user", "content": content}, ANSWER]})


@pytest.mark.parametrize("content", ["", " \n", None, [part("")]])
def test_a_system_message_without_text_is_left_out_and_counted(content):
    empty = {"role": "system", "content": content}
    reading = Reading()
    ((_, example),) = read_examples([("here", {"messages": [empty, USER, ANSWER]})], None, reading)
    assert example == Conversation([USER, ANSWER])
    assert reading.ignored == {"empty system messages": 1}
    assert "messages[3] (user) is the last" in problem_of({"messages": [empty, USER, ANSWER, USER]})


@pytest.mark.parametrize(
    ("keys", "train"),
    [({"weight": 0}, False), ({"weight": 1.0}, True), ({"train": False}, False), ({"weight": 1, "train": True}, True)],
)
def test_weight_and_train_say_whether_a_message_is_trained_on(keys, train):
    assert read_messages([USER, ANSWER | keys]) == [USER, ANSWER | {"train": train}]
    assert read_messages([USER, ANSWER | dict.fromkeys(keys)]) == [USER, ANSWER]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"weight": 0.5}, "messages[1] (assistant).weight is 0.5 (float), but it must be 0 or 1"),
        ({"train": "no"}, "messages[1] (assistant).train is 'no', but it must be true or false"),
        ({"weight": 0, "train": True}, "messages[1] (assistant) has weight 0 and train true, which contradict"),
        ({"reasoning_content": 3}, "messages[1] (assistant).reasoning_content is 3 (int), but it must be text"),
        ({"tool_calls": "add(2)"}, "messages[1] (assistant).tool_calls is 'add(2)', but a tool call must be {function"),
        ({"tool_calls": [{"function": {}}]}, "messages[1] (assistant).tool_calls is [{'function': {}}] (list), but"),
    ],
)
def test_invalid_keys_are_named(keys, text):
    assert text in problem_of({"messages": [USER, ANSWER | keys]})


@pytest.mark.parametrize(
    "calls",
    [
        {"tool_calls": [CALL]},
        {"tool_calls": [CALL | {"function": {"name": "add", "arguments": '{"x": 2}'}}]},
        {"tool_calls": json.dumps([CALL])},
        {"tool_calls": [CALL | {"index": None, "function": {"name": "add", "arguments": {"x": 2, "y": None}}}]},
    ],
)
def test_tool_calls_are_read_in_their_common_formats(calls):
    for content in ({"content": None}, {"content": ""}, {}):
        messages = [USER, {"role": "assistant", **content, **calls}, RESULT | {"tool_call_id": "c1"}, ANSWER]
        example = check_example({"messages": messages, "tools": json.dumps([TOOL])})
        assert isinstance(example, Conversation)
        assert example.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL]}
        assert example.messages[2] == RESULT | {"tool_call_id": "c1"}
        assert example.tools == [TOOL]


def test_the_older_format_of_tool_calls_is_converted():
    function = {"name": "add", "arguments": '{"x": 2}'}
    older = [
        USER,
        {"role": "assistant", "content": None, "function_call": function},
        {"role": "function", "name": "add", "content": "4"},
        ANSWER,
    ]
    example = check_example({"messages": older, "functions": [TOOL["function"]]})
    assert isinstance(example, Conversation)
    assert example.messages[1]["tool_calls"] == [{"type": "function", "function": CALL["function"]}]
    assert example.messages[2] == {"role": "tool", "name": "add", "content": "4"}
    assert example.tools == [TOOL]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (
            {"messages": [USER | {"tool_calls": [CALL]}, ANSWER]},
            "messages[0] (user) has tool_calls, but only the ",
        ),
        ({"messages": [USER, ANSWER], "tools": "add"}, "tools is 'add', but it must be a list of {type: function"),
        ({"messages": [USER, ANSWER], "tools": [{}]}, "tools is [{}] (list), but it must be a list of {type"),
        ({"messages": [USER, ANSWER], "weight": 0.3}, "has weight 0.3 (float), but weights for rows are not supported"),
        (
            {"prompt": "a", "response": "b", "train": False},
            "has train False (bool), but weights for rows are not supported",
        ),
        ({"prompt": "a", "response": "b", "tools": [TOOL]}, "has tools in addition to prompt and response, but tools"),
        (
            {"text": "a", "reasoning_content": "b"},
            "has reasoning_content in addition to text, but reasoning_content would not be used",
        ),
        (
            {"messages": [USER, ANSWER], "system": "Be brief."},
            "has system in addition to messages, but system would not be used",
        ),
        (
            {"prompt": "a", "response": "b", "context": "c"},
            "has context in addition to prompt and response, but context",
        ),
        ({"text": "a", "role": "prompter", "user": "x"}, "has role in addition to text, but role would not be used"),
        ({"prompt": "a", "completion": "b", "label": False}, "has label false, which marks an unwanted answer"),
        ({"prompt": "a", "response": [{"value": "b"}]}, "response is [{'value': 'b'}] (list), but it must be text"),
        ({"prompt": [USER], "other": 1}, "prompt is [{'role': 'user', 'content': '2 + 2?'}] (list), but it must be"),
    ],
)
def test_columns_that_affect_training_are_not_ignored(row, text):
    assert text in problem_of(row)


def test_prompt_and_completion_may_be_messages():
    """TRL's form: only the completion is trained on, and not earlier answers of the assistant."""
    before = [USER, ANSWER, USER]
    example = check_example({"prompt": before, "completion": [ANSWER], "id": 1})
    assert example == Conversation([USER, ANSWER | {"train": False}, USER, ANSWER])
    assert check_example({"prompt": "2 + 2?", "completion": [ANSWER]}) == Conversation([USER, ANSWER])
    assert check_example({"prompt": [SYSTEM, USER], "response": "4"}) == Conversation([SYSTEM, USER, ANSWER])


def test_a_prompt_that_repeats_a_message_is_not_a_second_form():
    """As in UltraChat's rows. A prompt that is in none of the messages would be lost."""
    reading = Reading()
    row = {"prompt": "2 + 2? ", "prompt_id": "x", "messages": [USER, ANSWER]}
    ((_, example),) = read_examples([("here", row)], None, reading)
    assert example == Conversation([USER, ANSWER])
    assert reading.ignored == {"prompt": 1, "prompt_id": 1}
    text = problem_of(row | {"prompt": "Be brief."})
    assert "the row has prompt and messages, but an example must have exactly one form" in text


def test_a_system_column_that_repeats_a_message_is_accepted():
    messages = [SYSTEM, USER, ANSWER]
    assert check_example({"messages": messages, "system": "Add."}) == Conversation(messages)


def test_the_error_about_a_list_of_messages_suggests_the_key():
    (problem,) = check_example([USER, ANSWER])
    assert problem.text.endswith('text or turns: write {"messages": [...]}')
