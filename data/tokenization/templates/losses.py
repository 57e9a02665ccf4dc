"""Find the parts of a conversation that the chat template leaves out, such as the thinking in an answer."""

import json
import re

from data.base.errors import TemplateError, setting
from data.base.problems import listed
from data.examples.forms import Conversation
from data.examples.messages import THINKING_KEYS
from data.tokenization.templates.probe import Place
from data.tokenization.tokenizer import Tokenizer

_THINKING = re.compile(
    r"<(think|thinking|thought|reasoning)>.*?</\1>|\[THINK\].*?\[/THINK\]|^.*?</think>", re.DOTALL | re.IGNORECASE
)
"""Matches the thinking at the start of an answer. The opening tag of the thinking is optional, because it may be in the
generation prompt."""
OTHER = "other"
"""The kind of parts that a template must never leave out."""
_SHOWN = 4
"""Maximum number of missing parts that an error lists. Further parts are only counted."""


def check_nothing_lost(conversation: Conversation, text: str, lost: frozenset[Place], tokenizer: Tokenizer) -> None:
    """Raises TemplateError if the rendered text lacks parts that the template must not leave out."""
    drops = tokenizer.chat_template_drops
    found = {name: kind for name, kind in _losses(conversation, text, lost) if kind not in drops}
    if not found:
        return
    if OTHER in found.values():
        fix = (
            "use a tokenizer whose template writes each message's text unchanged (templates of vision models may "
            "expect lists of parts), or change chat_template in its tokenizer_config.json"
        )
    else:
        allowed = list(dict.fromkeys((*sorted(drops), *found.values())))
        fix = "use a tokenizer whose template writes these parts, or allow the omission with "
        fix += setting("tokenizer.chat_template_drops", allowed)
    raise TemplateError(f"the chat template of tokenizer {tokenizer.name} leaves out {listed(found, _SHOWN)}: {fix}")


def _losses(conversation: Conversation, text: str, lost: frozenset[Place]) -> list[tuple[str, str]]:
    """`(name, kind)` of each part that is missing in the text. The kind is a value of chat_template_drops, or OTHER."""
    found = [("tools", "tools")] if (None, "tools") in lost else []
    for index, message in enumerate(conversation.messages):
        role = message["role"]
        name = f"messages[{index}] ({role})"
        for key in ("tool_calls", "loss_weight"):
            found += [(f"{name}.{key}", key)] if (index, key) in lost else []
        for key in THINKING_KEYS:
            if key in message and ((index, key) in lost or not _is_in(message[key], text)):
                found.append((f"{name}.{key}", "thinking"))
        if (index, "content") not in lost and _is_in(message["content"], text):
            continue
        answer = _THINKING.sub("", message["content"]) if role == "assistant" else message["content"]
        if answer != message["content"] and _is_in(answer, text):
            found.append((f"the thinking in {name}.content", "thinking"))
        else:
            found.append((f"{name}.content", "system" if role == "system" else OTHER))
    return found


def _is_in(words: str, text: str) -> bool:
    """Whether the text contains the words. In the text, the words may have different whitespace, or be written as JSON,
    as in results of tools."""
    if words.strip() in text:
        return True
    return _collapse(words) in _collapse(text) or json.dumps(words, ensure_ascii=False)[1:-1].strip() in text


def _collapse(text: str) -> str:
    return " ".join(text.split())
