"""Split a rendered conversation at the positions where responses begin and end."""

from dataclasses import dataclass, replace

from data.base.problems import Problem, describe
from data.examples.forms import Conversation
from data.tokenization.templates.losses import check_nothing_lost
from data.tokenization.templates.probe import Style, probe, shape_of
from data.tokenization.templates.special_tokens import Hidden
from data.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class Part:
    """A part of a rendered conversation. Parts are encoded separately, so that the loss mask never has to change inside
    a token."""

    text: str
    kind: str
    """prompt, response, or rest, which is the text after the end of the last turn."""
    train: bool | None = None
    """The value of `train` in the part's messages; None if they have no `train`."""


def render_question(conversation: Conversation, tokenizer: Tokenizer) -> str:
    """Render the text before the assistant's next answer. Raises the same errors as `Tokenizer.render`."""
    return _render(conversation, tokenizer, probe(tokenizer, shape_of(conversation)).style, ask=True)


def _render(conversation: Conversation, tokenizer: Tokenizer, style: Style, *, ask: bool) -> str:
    messages = style.of(conversation.messages)
    return tokenizer.render(messages, add_generation_prompt=ask, tools=conversation.tools)


def split_turns(hidden: Hidden, tokenizer: Tokenizer, *, every_turn: bool) -> list[Part] | Problem:
    """Split the rendered conversation where each response begins and ends; if `every_turn` is false, only where the
    last response begins and ends.

    The conversation is rendered up to each of these positions, and the text of the whole conversation must begin with
    the same text. Otherwise, prompts at inference would differ from training, and a Problem that names the turn is
    returned. Raises DataError with the template's message if the template rejects the conversation, and TemplateError
    for parts that it leaves out.
    """
    conversation = hidden.conversation
    messages, probed = conversation.messages, probe(tokenizer, shape_of(conversation))

    def rendered(stop: int, *, ask: bool) -> str:
        return _render(replace(conversation, messages=messages[:stop]), tokenizer, probed.style, ask=ask)

    whole = rendered(len(messages), ask=False)
    check_nothing_lost(conversation, whole, probed.lost, tokenizer)
    parts: list[Part] = []
    start = first = 0
    for index, message in enumerate(messages):
        is_last = index == len(messages) - 1
        if message["role"] != "assistant" or not (every_turn or is_last):
            continue
        asked = rendered(index, ask=True)
        answered = whole if is_last else rendered(index + 1, ask=False)
        for earlier, later in ((whole[:start], asked), (asked, answered), (answered, whole)):
            if not later.startswith(earlier):
                # If the text of all turns before the response is the same, the difference is in the generation prompt.
                is_prompt = earlier is asked and answered.startswith(rendered(index, ask=False))
                return _not_stable(index, hidden, earlier, later, is_prompt=is_prompt, every_turn=every_turn)
        end = len(asked) + len(answered[len(asked) :].rstrip())
        never = any(m.get("train") is False for m in messages[first:index])
        parts.append(Part(whole[start : len(asked)], "prompt", False if never else None))
        parts.append(Part(whole[len(asked) : end], "response", message.get("train")))
        start, first = end, index + 1
    return [*parts, Part(whole[start:], "rest")] if start < len(whole) else parts


def _not_stable(index: int, hidden: Hidden, earlier: str, later: str, *, is_prompt: bool, every_turn: bool) -> Problem:
    same = next((at for at, (one, two) in enumerate(zip(earlier, later, strict=False)) if one != two), len(later))
    was, now = (describe(hidden.restore(text[same:])) for text in (earlier, later))
    if is_prompt:
        text = (
            f"messages[{index}] (assistant): the generation prompt ends with {was}, but in a conversation with an "
            f"answer, the chat template writes {now} in this place, so prompts at inference would differ from "
            "training: use a chat template that writes the same text before an answer as in its generation prompt (if "
            "the generation prompt contains the tag that opens the assistant's thinking, remove the tag there, or "
            "write the tag before every answer)"
        )
        return Problem("the generation prompt differs from the text before an answer", text)
    fix = "use a tokenizer whose template does not change earlier turns"
    if every_turn:
        fix += ", or train on the last answers only (target_prompts: none, target_responses: last)"
    text = (
        f"messages[{index}] (assistant): the chat template changes earlier text when more turns follow ({was} "
        f"became {now}), so prompts at inference would differ from training: {fix}"
    )
    return Problem("the chat template is not prefix-stable", text)
