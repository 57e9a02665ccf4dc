"""Render chat templates like transformers, with the same text for all versions of transformers, and within limits."""

import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from data.tokenization.templates.limits import LimitExceeded, TemplateLimits

if TYPE_CHECKING:
    import jinja2

MAX_INTEGER_BITS = 4096
"""Maximum size of the result when a template multiplies, divides or exponentiates integers. Larger ones may take very
long in a single operation."""


def render_chat(
    tokenizer: Any,
    messages: list[dict[str, Any]],
    *,
    subject: str,
    strftime: Callable[[str], str],
    tools: list[dict[str, Any]] | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """Like apply_chat_template of transformers, but with the same text for every version: transformers 5 leaves out
    keys that are null, which some templates read. strftime replaces strftime_now, which depends on the current day.

    Raises TemplateError, beginning with the subject, if a limit is exceeded; otherwise the errors of the template.
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
    _environment()  # imports transformers here, so that it does not count towards the template's time
    with TemplateLimits(subject):
        return _compile(template).render(variables)


def plain(value: Any) -> Any:
    """The value with types of JSON only, as in transformers 5: methods of other objects could be called, and some of
    them write files."""
    kind = type(value)
    if kind is str:
        return value
    if kind is dict:  # the most common type, so this must be fast
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
    """The environment of transformers with our operators. Only Jinja's sandboxed environments can replace operators."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    environment: Any = _compile_jinja_template("").environment.overlay()
    environment.binop_table = environment.binop_table | _OPERATORS
    environment.intercepted_binops = frozenset(_OPERATORS)
    return environment


@lru_cache
def _compile(template: str) -> "jinja2.Template":
    """Compile the template. Must be called within limits, because constant expressions are evaluated here."""
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
