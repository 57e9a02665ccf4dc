"""Rendering of conversations by chat templates: nothing is lost, and the mask covers the assistant's answers."""

import numpy as np
import pytest

from data.base.errors import TemplateError
from data.base.problems import Problem
from data.config.dataset import DatasetConfig
from data.config.tokenizer import TokenizerConfig
from data.examples.examples import check_example
from data.examples.forms import Conversation
from data.tokenization.build import build_tokenizer
from data.tokenization.chat import NOT_TRAINED, Document, fit, tokenize
from data.tokenization.tiktoken_tokenizer import CL100K_PATTERN, TiktokenTokenizer
from tests.helpers import chat_templates as shapes

CHATML = TiktokenTokenizer("bytes", {bytes([byte]): byte for byte in range(256)}, CL100K_PATTERN, {})
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "abc123def", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}


def say(role: str, content, **more) -> dict:
    return {"role": role, "content": content, **more}


def conversation(*messages: dict, **more) -> Conversation:
    example = check_example({"messages": list(messages), **more})
    assert isinstance(example, Conversation), example
    return example


TALK = (say("user", "Why?"), say("assistant", "Because."), say("user", "And how?"), say("assistant", "Like so."))
TOOLS = (
    *(say("user", "Is it cold?"), say("assistant", None, tool_calls=[CALL])),
    *(say("tool", '{"degrees": -3}', tool_call_id="abc123def"), say("assistant", "Yes, -3.")),
)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A Hugging Face tokenizer with this chat template, and settings of `tokenizer`."""
    folder = tmp_path_factory.mktemp("tokenizer")
    CHATML.save_pretrained(folder, 4096)

    def make(text: str, **settings):
        (folder / "chat_template.jinja").write_text(text)
        return build_tokenizer(TokenizerConfig(name=str(folder), **settings))

    return make


def made(example, tokenizer, **changes) -> tuple[str, list[str]]:
    """The text, and the parts that are trained on."""
    config = DatasetConfig(**{"hf_name": "json", "max_seq_len": 4096} | changes)
    document = tokenize(example, tokenizer, config)
    assert isinstance(document, Document), document
    cuts = np.flatnonzero(np.diff(document.loss_mask)) + 1
    runs = zip(np.split(document.tokens, cuts), np.split(document.loss_mask, cuts), strict=True)
    return tokenizer.decode(document.tokens), [tokenizer.decode(tokens) for tokens, mask in runs if mask[0]]


def refusal(example, tokenizer, **changes) -> str:
    with pytest.raises(TemplateError) as error:
        made(example, tokenizer, **changes)
    return str(error.value)


@pytest.mark.parametrize(
    ("shape", "trained"),
    [
        (shapes.LLAMA3, ["Because.<|im_end|>", "Like so.<|im_end|>"]),
        (shapes.R1, ["Because.<|im_end|>", "Like so.<|im_end|>"]),
        (shapes.GEMMA, ["Because.<|im_end|>", "Like so.<|im_end|>"]),
        (shapes.MISTRAL, [" Because.<|endoftext|>", " Like so.<|endoftext|>"]),
    ],
)
def test_well_known_shapes_are_trained_on_in_every_turn(template, shape, trained):
    tokenizer = template(shape, chat_date="2026-11-29")
    text, stretches = made(conversation(*TALK), tokenizer, target_responses="all")
    assert stretches == trained
    assert all(message["content"] in text for message in TALK)


@pytest.mark.parametrize("shape", [shapes.LLAMA3, shapes.QWEN3, shapes.R1, shapes.MISTRAL])
def test_a_system_message_is_in_the_prompt(template, shape):
    text, _ = made(conversation(say("system", "Be brief."), *TALK), template(shape, chat_date="2026-11-29"))
    assert "Be brief." in text


def test_a_template_that_rejects_system_messages_is_a_problem_of_the_row(template):
    problem = tokenize(
        conversation(say("system", "Be brief."), *TALK),
        template(shapes.GEMMA),
        DatasetConfig(hf_name="json", max_seq_len=64),
    )
    assert isinstance(problem, Problem)
    assert problem.text == "the chat template rejects the conversation: System role not supported"


def test_a_template_that_expects_parts_is_refused(template):
    text = refusal(conversation(*TALK), template(shapes.PARTS))
    assert "leaves out messages[0] (user).content, messages[1] (assistant).content, messages[2] (user).content" in text
    assert text.startswith("the chat template of tokenizer ")
    assert "vision models" in text


def test_a_system_message_may_be_left_out_where_that_is_allowed(template):
    example = conversation(say("system", "a"), *TALK)  # which is in `assistant` too
    text = refusal(example, template(shapes.NO_SYSTEM))
    assert " leaves out messages[0] (system).content: " in text
    assert text.endswith("allow the omission with tokenizer.chat_template_drops: [system]")
    allowed = template(shapes.NO_SYSTEM, chat_template_drops=["system"])
    assert made(example, allowed) == made(conversation(*TALK), allowed)


@pytest.mark.parametrize("shape", [shapes.QWEN3, shapes.R1])
def test_earlier_thinking_may_be_left_out_where_that_is_allowed(template, shape):
    thoughts = "<think>\nThey ask why.\n</think>\n\n"
    example = conversation(TALK[0], say("assistant", f"{thoughts}Because."), *TALK[2:])
    text = refusal(example, template(shape))
    assert " leaves out the thinking in messages[1] (assistant).content: " in text
    assert text.endswith("chat_template_drops: [thinking]")
    text, _ = made(example, template(shape, chat_template_drops=["thinking"]))
    assert "Because." in text
    assert "They ask" not in text


@pytest.mark.parametrize(
    "answer",
    [say("assistant", "<think>\nSo.\n</think>\n\nLike so."), say("assistant", "Like so.", reasoning_content="So.")],
)
def test_thinking_that_the_template_writes_is_trained_on(template, answer):
    _, trained = made(conversation(*TALK[:3], answer), template(shapes.QWEN3))
    assert trained == ["<think>\nSo.\n</think>\n\nLike so.<|im_end|>"]


def test_thinking_in_its_own_key_is_not_ignored(template):
    example = conversation(*TALK[:3], say("assistant", "Like so.", thinking="So."))
    assert made(example, template(shapes.QWEN3))[1] == ["<think>\nSo.\n</think>\n\nLike so.<|im_end|>"]
    assert " leaves out messages[3] (assistant).thinking: " in refusal(example, template(shapes.R1))
    assert made(example, template(shapes.R1, chat_template_drops=["thinking"]))[1] == ["Like so.<|im_end|>"]
    weighted = conversation(*TALK[:3], say("assistant", "Like so.", loss_weight=0.5))
    assert " leaves out messages[3] (assistant).loss_weight: " in refusal(weighted, template(shapes.QWEN3))


@pytest.mark.parametrize(
    ("shape", "call"),
    [
        (shapes.LLAMA3, '{"name": "weather", "parameters": {"city": "Oslo"}}<|im_end|>'),
        (
            shapes.QWEN3,
            '\n<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
        ),
        (shapes.MISTRAL, '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Oslo"}}]<|endoftext|>'),
        (shapes.R1, 'weather\n{"city": "Oslo"}<|im_end|>'),
    ],
)
def test_tool_calls_are_trained_on_and_their_results_are_not(template, shape, call):
    drops = ["tools"] if shape == shapes.R1 else []
    tokenizer = template(shape, chat_date="2026-11-29", chat_template_drops=drops)
    example = conversation(*TOOLS, tools=[TOOL])
    text, trained = made(example, tokenizer, **({} if shape == shapes.QWEN3 else {"target_responses": "all"}))
    assert trained[-1].strip().startswith("Yes, -3.") or shape == shapes.QWEN3
    assert call in (text if shape == shapes.QWEN3 else trained[0])
    assert "degrees" in text
    assert not any("degrees" in stretch for stretch in trained)


def test_tools_and_calls_that_a_template_does_not_know_are_not_ignored(template):
    with_words = (TOOLS[0], say("assistant", "Let me look.", tool_calls=[CALL]), *TOOLS[2:])
    for messages, more, what in (
        (TOOLS, {"tools": [TOOL]}, "tools, messages[1] (assistant).tool_calls"),
        (with_words, {}, "messages[1] (assistant).tool_calls"),
        (TALK, {"tools": [TOOL]}, "tools"),
    ):
        text = refusal(conversation(*messages, **more), CHATML)
        assert text.startswith(f"the chat template of tokenizer bytes leaves out {what}: ")
    # Llama 3 writes either a tool call or text, not both.
    text = refusal(conversation(*with_words), template(shapes.LLAMA3, chat_date="2026-11-29"))
    assert " leaves out messages[1] (assistant).content: " in text


def test_a_template_that_writes_only_the_end_of_an_answer_is_refused(template):
    drops = TiktokenTokenizer(
        "bytes", {bytes([byte]): byte for byte in range(256)}, CL100K_PATTERN, {}, chat_template_drops=["tool_calls"]
    )
    assert "writes only the end of an answer (<|im_end|>)" in refusal(
        conversation(*TOOLS), drops, target_responses="all"
    )


def test_a_date_comes_from_the_config_and_is_in_the_fingerprint(template):
    one, other = (template(shapes.LLAMA3, chat_date=date) for date in ("2026-11-29", "2026-11-30"))
    assert "Today: 29 Nov 2026\n" in made(conversation(*TALK), one)[0]
    without = template(shapes.LLAMA3)
    assert "writes today's date (%d %b %Y)" in refusal(conversation(*TALK), without)
    assert len({one.fingerprint, other.fingerprint, without.fingerprint}) == 3


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"name": "a", "chat_date": "today"}, "chat_date is 'today', but a date must be written like '2026-11-29'"),
        ({"name": "tiktoken", "chat_date": "2026-11-29"}, "kwargs requires exactly one of"),
    ],
)
def test_invalid_dates_are_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        TokenizerConfig(**settings)


def test_weights_override_targets():
    off, on = {"weight": 0}, {"weight": 1}
    flags = [say("assistant", "A", **off), say("assistant", "B", **on), say("assistant", "C")]
    messages = [m for answer in flags for m in (say("user", "q"), answer)]
    for target, trained in (("last", ["B<|im_end|>", "C<|im_end|>"]), ("all", ["B<|im_end|>", "C<|im_end|>"])):
        assert made(conversation(*messages), CHATML, target_responses=target)[1] == trained
    assert made(conversation(*messages[:3], say("assistant", "C", **off)), CHATML, target_responses="all")[1] == []
    config = DatasetConfig(hf_name="json", max_seq_len=64)
    document = tokenize(conversation(say("user", "q"), say("assistant", "C", **off)), CHATML, config)
    assert fit(document, config) == NOT_TRAINED


def test_a_prompt_with_a_message_of_weight_0_is_not_trained_on():
    messages = (say("user", "q", weight=0), say("assistant", "A"), say("user", "r"), say("assistant", "B"))
    _, trained = made(conversation(*messages), CHATML, target_prompts="all", target_responses="all")
    assert trained == ["A<|im_end|>\n<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\nB<|im_end|>"]


def test_thinking_opened_by_the_generation_prompt_is_named(template):
    shape = shapes.R1.replace(
        "{{ '<|im_start|>assistant' }}{% endif %}", "{{ '<|im_start|>assistant<think>\\n' }}{% endif %}"
    )
    config = DatasetConfig(hf_name="json", max_seq_len=64)
    problem = tokenize(conversation(*TALK), template(shape), config)
    assert isinstance(problem, Problem)
    assert problem.text.startswith("messages[3] (assistant): the generation prompt ends with '<think>\\n', but in a ")
    assert "remove the tag there" in problem.text


def test_private_use_characters_are_never_shown(template):
    quoted = conversation(say("user", "what is <|im_end|>?"), say("assistant", "an end: <|im_end|>!"))
    shape = shapes.NO_SYSTEM.replace(
        "assistant\\n' }}{% endif %}", "assistant\\n' + messages[-1].content }}{% endif %}"
    )
    config = DatasetConfig(hf_name="json", max_seq_len=64)
    problem = tokenize(quoted, template(shape), config)
    assert isinstance(problem, Problem)
    assert "'what is <|im_end|>?'" in problem.text
    assert "U000f" not in problem.text
    with_call = conversation(TOOLS[0], say("assistant", None, tool_calls=[CALL | {"function": {"name": "<|pad|>"}}]))
    text, _ = made(with_call, template(shapes.QWEN3))
    assert '"name": "<|pad|>"' in text
