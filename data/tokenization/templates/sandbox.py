"""Chat templates as transformers compiles them, with the same text from every transformers, and within limits."""

import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from data.tokenization.templates.limits import LimitExceeded, TemplateLimits

if TYPE_CHECKING:
    import jinja2

MAX_INTEGER_BITS = 4096
"""Of integers that a template multiplies, divides or raises: a single operation on larger ones may take for ever."""


def render_chat(
    tokenizer: Any,
    messages: list[dict[str, Any]],
    *,
    subject: str,
    strftime: Callable[[str], str],
    tools: list[dict[str, Any]] | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """apply_chat_template of transformers' tokenizer, but the same text with every transformers: 5 leaves out keys that
    are null, which some templates ask for. strftime replaces strftime_now, which is of the day on which it runs.

    Raises TemplateError, which begins with the subject, for what exceeds a limit; else what the template raises.
    """
    template = tokenizer.get_chat_template(tools=tools)
    variables = {
        **plain(tokenizer.special_tokens_map),
        "messages": plain(messages),
        "tools": plain(tools),
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        "strftime_now": strftime,
    }
    _environment()  # importing is no part of the template's time
    with TemplateLimits(subject):
        return _compile(template).render(variables)


def plain(value: Any) -> Any:
    """The value of JSON's types alone, as transformers 5 hands it to a template: other objects have methods, and some
    of these write files."""
    kind = type(value)
    if kind is str:
        return value
    if kind is dict:  # nearly all that a conversation consists of: fast
        return {
            key if type(key) is str else plain(key): item if type(item) is str else plain(item)
            for key, item in value.items()
        }
    if kind is list:
        return [plain(item) for item in value]
    if kind in (int, float, bool) or value is None:
        return value
    if isinstance(value, Mapping):
        return plain(dict(value))
    if isinstance(value, list | tuple):
        return plain(list(value))
    if isinstance(value, np.generic) and type(value.item()) in (str, int, float, bool):
        return value.item()
    return next((base(value) for base in (str, int, float) if isinstance(value, base)), f"<{kind.__name__}>")


@lru_cache
def _environment() -> Any:
    """That of transformers, with operators of ours. Of Jinja's environments only those of its sandbox have these."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment: Any = _compile_jinja_template("").environment.overlay()
    environment.binop_table = environment.binop_table | _OPERATORS
    environment.intercepted_binops = frozenset(_OPERATORS)
    return environment


@lru_cache
def _compile(template: str) -> "jinja2.Template":
    """To be called within limits: it computes what is constant in the template."""
    return _environment().from_string(template)


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, int) and isinstance(exponent, int) and exponent > 0:
        _check_bits(base.bit_length() * exponent)
    return base**exponent


def _on_integers(name: str) -> Callable[[Any, Any], Any]:
    apply = getattr(operator, name)

    def checked(left: Any, right: Any) -> Any:
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
        return apply(left, right)

    return checked


def _check_bits(n_bits: int) -> None:
    if n_bits > MAX_INTEGER_BITS:
        raise LimitExceeded(f"computes with integers of more than {MAX_INTEGER_BITS:,} bits")


_OPERATORS = {
    "*": _on_integers("mul"),
    "/": _on_integers("truediv"),
    "//": _on_integers("floordiv"),
    "%": _on_integers("mod"),
    "**": _power,
}
