"""What of a conversation is not in the text that the chat template wrote, such as an answer's thoughts."""

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
"""What an answer holds of the thoughts before it; a generation prompt may have opened them."""
OTHER = "other"
"""What no template may leave out."""
_SHOWN = 4
"""Places that an error names; the others are counted."""


def check_nothing_lost(conversation: Conversation, text: str, lost: frozenset[Place], tokenizer: Tokenizer) -> None:
    """Raises TemplateError for what is not in the text and may not be left out."""
    drops = tokenizer.chat_template_drops
    found = {name: kind for name, kind in _losses(conversation, text, lost) if kind not in drops}
    if not found:
        return
    if OTHER in found.values():
        fix = (
            "take a tokenizer whose template writes each message's text as it is (those of vision models may read "
            "lists of parts), or change chat_template in its tokenizer_config.json"
        )
    else:
        allowed = list(dict.fromkeys((*sorted(drops), *found.values())))
        fix = "take a tokenizer whose template does, or allow it with "
        fix += setting("tokenizer.chat_template_drops", allowed)
    raise TemplateError(
        f"{listed(found, _SHOWN)} {'is' if len(found) == 1 else 'are'} not in what the chat template of tokenizer "
        f"{tokenizer.name} writes: {fix}"
    )


def _losses(conversation: Conversation, text: str, lost: frozenset[Place]) -> list[tuple[str, str]]:
    """`(name, kind)` of what is not in the text; the kind is as chat_template_drops has it, or OTHER."""
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
    """As it is, with other whitespace, or as JSON text, which templates write results of tools in."""
    if words.strip() in text:
        return True
    return _collapse(words) in _collapse(text) or json.dumps(words, ensure_ascii=False)[1:-1].strip() in text


def _collapse(text: str) -> str:
    return " ".join(text.split())
