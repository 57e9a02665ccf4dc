"""A rendered conversation, cut where a response begins and ends."""

from dataclasses import dataclass, replace

from data.base.problems import Problem, describe
from data.examples.forms import Conversation
from data.tokenization.templates.losses import check_nothing_lost
from data.tokenization.templates.probe import Style, probe, shape_of
from data.tokenization.templates.special_tokens import Hidden
from data.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class Part:
    """A stretch of a rendered conversation. Parts are encoded apart, so that the mask's borders fall between tokens."""

    text: str
    kind: str
    """prompt, response, or rest: what the template writes after the last turn's end."""
    train: bool | None = None
    """What the messages in it say of being trained on, if they say anything."""


def render_question(conversation: Conversation, tokenizer: Tokenizer) -> str:
    """Up to where the assistant's next answer begins. Raises what Tokenizer.render does."""
    return _render(conversation, tokenizer, probe(tokenizer, shape_of(conversation)).style, ask=True)


def _render(conversation: Conversation, tokenizer: Tokenizer, style: Style, *, ask: bool) -> str:
    messages = style.of(conversation.messages)
    return tokenizer.render(messages, add_generation_prompt=ask, tools=conversation.tools)


def split_turns(hidden: Hidden, tokenizer: Tokenizer, *, every_turn: bool) -> list[Part] | Problem:
    """The rendered conversation, cut where a response begins and ends; without every_turn only at the last one.

    The template is rendered up to each of these borders, and has to write the same up to there in the whole
    conversation: else a model would be asked otherwise than it was trained. Problem with the turn where it does not.
    Raises DataError with what the template says against the conversation, TemplateError for what it loses.
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
                # Where the turns before are the same, what the generation prompt adds to them is not.
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
            f"messages[{index}] (assistant): the generation prompt ends with {was}, but the chat template writes {now} "
            "there where the answer is known, so that a model would be asked otherwise than it was trained: use a "
            "chat template that writes the same before an answer as in its generation prompt (of one that opens the "
            "assistant's thoughts, take that out of the generation prompt, or have it written before every answer)"
        )
        return Problem("the generation prompt is not in the conversation", text)
    fix = "use a tokenizer whose template leaves earlier turns as they are"
    if every_turn:
        fix += ", or train on the last answers alone (target_prompts: none, target_responses: last)"
    text = (
        f"messages[{index}] (assistant): with more turns the chat template writes what is before otherwise ({was} "
        f"became {now}), so that a model would be asked otherwise than it was trained: {fix}"
    )
    return Problem("the chat template is not prefix-stable", text)
