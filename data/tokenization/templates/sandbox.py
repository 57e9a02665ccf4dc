"""Render chat templates as transformers does, but with limits, and with the same result for all versions of
transformers."""

import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from data.tokenization.templates.limits import LimitExceeded, TemplateLimits

if TYPE_CHECKING:
    import jinja2

MAX_INTEGER_BITS = 4096
"""Maximum size of the result when a template multiplies, divides or exponentiates integers. A single operation with
larger integers may take a very long time."""


def render_chat(
    tokenizer: Any,
    messages: list[dict[str, Any]],
    *,
    subject: str,
    strftime: Callable[[str], str],
    tools: list[dict[str, Any]] | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """Like apply_chat_template of transformers, but with the same result for all versions. (transformers 5 leaves out
    keys that are null, although some templates read them.) `strftime` is used in place of strftime_now, which depends
    on the current day. If a limit is exceeded, raises a TemplateError whose message begins with `subject`.

    Errors of the template are raised unchanged.
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
    _environment()  # this call imports transformers before the measurement of the template's time begins
    with TemplateLimits(subject):
        return _compile(template).render(variables)


def plain(value: Any) -> Any:
    """The value converted to JSON types, as in transformers 5. A template could call methods of objects of other types,
    and some of these methods write files."""
    kind = type(value)
    if kind is str:
        return value
    if kind is dict:  # strings are the most common values, so `plain` is not called for them
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
    """The Jinja environment of transformers, with our own operators. Only Jinja's sandboxed environments can replace
    operators."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment: Any = _compile_jinja_template("").environment.overlay()
    environment.binop_table = environment.binop_table | _OPERATORS
    environment.intercepted_binops = frozenset(_OPERATORS)
    return environment


@lru_cache
def _compile(template: str) -> "jinja2.Template":
    """Compile the template. This must be called within TemplateLimits, because constant expressions are evaluated
    here."""
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
