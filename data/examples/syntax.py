"""A text representation of Python code that does not depend on layout, comments, or the version of Python.

ast.dump and ast.unparse are not used because their output differs between versions.
"""

import ast
from collections.abc import Iterator
from typing import Any


def canonical(source: str) -> str:
    """The syntax tree of the source as text, without comments, docstrings and other statements that are only strings.

    Docstrings are kept if the source reads docstrings (contains `__doc__` or `getdoc`).
    """
    reads_docstrings = "__doc__" in source or "getdoc" in source
    parts: list[str] = []
    # An explicit stack is used instead of recursion, because a sum of a thousand terms is a tree with a thousand
    # levels.
    stack: list[Any] = [ast.parse(source)]
    while stack:
        value = stack.pop()
        if isinstance(value, _Text):
            parts.append(value)
        elif isinstance(value, ast.AST):
            parts.append(f"{type(value).__name__}(")
            stack.append(_Text(")"))
            for name, child in reversed(list(_fields(value))):
                stack += [child, _Text(f" {name}=")]
        elif isinstance(value, list):
            kept = [each for each in value if reads_docstrings or not _is_only_text(each)]
            parts.append("[")
            stack.append(_Text("]"))
            for child in reversed(kept):
                stack += [_Text(","), child]
        else:
            # ascii() is used because the characters that repr() escapes depend on the version's Unicode tables.
            parts.append(ascii(value))
    return "".join(parts)


class _Text(str):
    """Text that is ready for output. All other items on the stack must be converted first."""


def _fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    """All fields that affect behavior. Empty fields are left out, because new versions of Python add fields to
    nodes."""
    for name, value in ast.iter_fields(node):
        if name in ("ctx", "kind", "type_comment"):
            continue
        if isinstance(node, ast.JoinedStr):
            value = _merged(value)
        if isinstance(node, ast.Constant) or value not in (None, []):
            yield name, value


def _merged(values: list[ast.expr]) -> list[Any]:
    """The parts of an f-string with adjacent strings merged, because versions of Python split them differently."""
    out: list[Any] = []
    for value in values:
        text = str(value.value) if isinstance(value, ast.Constant) else None
        if text is None:
            out.append(value)
        elif out and isinstance(out[-1], str):
            out[-1] += text
        elif text:
            out.append(text)
    return out


def _is_only_text(statement: Any) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
