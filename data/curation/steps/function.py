"""The user's own function as a step."""

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from data.base.errors import ConfigError, DataError, raise_together
from data.base.paths import is_unicode, shown
from data.config.source import is_standard_library
from data.config.suggest import near
from data.curation.base.document import KEPT, Document, Judge, Verdict
from data.curation.base.step import DocumentStep
from data.examples.own_function import import_function, source_of

_PURPOSE = "filters documents"


@dataclass(frozen=True, kw_only=True)
class Function(DocumentStep):
    """Filters or changes documents with the user's own function.

    The function is called as `function(document, **arguments)`, where `document` is a dict with the keys `text`,
    `source`, `file`, `position`, `n_tokens` and `scores`, as in `Document`. It returns the text, which may be changed,
    or True to keep the document, and None or False to remove the document. The result must depend only on the document
    and the arguments.

    Executors on other machines receive the code of the module that contains the function. Other modules that it imports
    must be installed there.
    """

    function: str
    """The function, as `module:function`."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the function. In a YAML file, these are the parameters of the step."""

    def check(self) -> None:
        """Raises ConfigError if the function cannot be imported, has no Python source, or does not accept the
        arguments. An error about an argument has the argument's name as its key."""
        function = self._function()
        source_of(self.function, function, "function")
        raise_together(list(_argument_errors(self.function, function, self.arguments)))

    def made_from(self) -> dict[str, Any]:
        source = source_of(self.function, self._function(), "function")
        return {"function": source, "arguments": self.arguments}

    def modules(self) -> tuple[ModuleType, ...]:
        """The module in the config and, if that module only imports the function, the module that defines it."""
        function = self._function()
        named, defined = sys.modules[self.function.partition(":")[0]], inspect.getmodule(inspect.unwrap(function))
        if defined is None or defined is named or is_standard_library(defined.__name__):
            return (named,)
        return named, defined

    def judge(self) -> Judge:
        name, function, arguments = self.function, self._function(), self.arguments

        def judge(document: Document) -> Verdict:
            given = {**document._asdict(), "scores": dict(document.scores)}
            del given["id"]
            try:
                result = function(given, **arguments)
            except SystemExit as error:
                raise DataError(f"{name} ended its process: {error!r}: return None to remove the document") from None
            if result is True and given.get("text") != document.text:
                raise DataError(f"{name} changed document['text'] and returned True: return the new text")
            return _verdict(name, result, document.text)

        return judge

    def __getstate__(self) -> dict[str, Any]:
        # The function itself is pickled, because executors on other machines cannot import it by its name.
        return {**vars(self), "_loaded": self._function()}

    def _function(self) -> Callable[..., Any]:
        loaded = vars(self).get("_loaded")
        return import_function(self.function, "function", _PURPOSE) if loaded is None else loaded


def _verdict(name: str, result: object, text: str) -> Verdict:
    if isinstance(result, str):
        if not is_unicode(result):
            raise DataError(f"{name} returned a text with lone surrogates, which cannot be stored in UTF-8")
        if not result:
            return Verdict(reason=name, detail="returned an empty text")
        return KEPT if result == text else Verdict(text=str(result), changes=1)
    if result is None or isinstance(result, bool | np.bool_):
        return KEPT if result else Verdict(reason=name, detail=f"returned {result}")
    raise DataError(
        f"{name} returned {shown(result)}, which is of type {type(result).__name__}, but it must return the text, "
        "True, False or None"
    )


def _argument_errors(name: str, function: Callable[..., Any], arguments: dict[str, Any]) -> Iterator[ConfigError]:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a function of an extension module has no signature
        return
    first = next((one for one in parameters if one.kind is not one.KEYWORD_ONLY), None)
    if first is None or first.kind is first.VAR_KEYWORD:
        yield ConfigError(
            f"is {name!r}, which has no parameter for the document: define it as function(document, ...)",
            key="function",
        )
        return
    rest = parameters if first.kind is first.VAR_POSITIONAL else [one for one in parameters if one is not first]
    named = [one for one in rest if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    names = [one.name for one in named]
    if not any(one.kind is one.VAR_KEYWORD for one in rest):
        for argument in arguments:
            if argument not in names:
                accepted = f"accepted: {', '.join(names)}" if names else "it accepts no arguments"
                yield ConfigError(
                    f"is not an argument of {name}{near(argument, names)} ({accepted})", key=str(argument)
                )
    for one in named:
        if one.default is one.empty and one.name not in arguments:
            yield ConfigError(f"is missing, but {name} requires this argument", key=one.name)
    if any(one.kind is one.POSITIONAL_ONLY and one.default is one.empty for one in rest):
        yield ConfigError(
            f"is {name!r}, which has several required positional-only parameters: only the document is passed by "
            "position",
            key="function",
        )
