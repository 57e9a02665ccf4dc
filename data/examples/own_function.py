"""The user's own functions, which a config specifies as `module:function`."""

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from data.base.errors import ConfigError
from data.base.paths import path_defect, shown
from data.base.workers import WorkerEnded, try_in_child
from data.config.source import MAKES_EXAMPLES, is_standard_library, standard_library_defect
from data.examples.syntax import canonical

_MODULE = re.compile(r"[\w-]+(\.[\w-]+)*")


def import_function(value: str, key: str, purpose: str = MAKES_EXAMPLES) -> Callable[..., Any]:
    """The function. A module that is not imported yet is first imported in a child process.

    Raises ConfigError for `key` if the function does not exist, or if it is defined in Python's standard library, even
    if it is imported from another module. `purpose` completes the message that the standard library has no function
    that ...
    """
    if (defect := standard_library_defect(value, purpose)) is not None:
        raise ConfigError(defect, key=key)
    module_name, _, name = value.partition(":")
    if not _MODULE.fullmatch(module_name) or not name.isidentifier() or path_defect(value) is not None:
        raise ConfigError(f"is {shown(value)}, but your own function must be written as module:function", key=key)
    module = _import_module(value, module_name, key)
    function = getattr(module, name, None)
    if function is None:
        functions = [key for key, thing in vars(module).items() if callable(thing)]
        raise ConfigError(f"is {value!r}, but {module_name} has no {name}{did_you_mean(name, functions)}", key=key)
    if not callable(function):
        raise ConfigError(
            f"is {value!r}, but {name} is not callable ({type(function).__name__}): set the name of a function", key=key
        )
    if is_standard_library(origin := _origin(function)):
        raise ConfigError(
            f"is {value!r}, but {name} is defined in Python's standard library ({origin}), which has no function that "
            f"{purpose}: write your own function in {module_name}",
            key=key,
        )
    return function


def source_of(value: str, function: Callable[..., Any], key: str) -> str:
    """A text for fingerprints. The text changes if the behavior of the function may have changed, but not if only
    docstrings or comments have changed.

    This is the source of the whole module, because the function may call other functions in the module. Raises
    ConfigError if the module has no Python source.
    """
    module = value.partition(":")[0]
    defined = inspect.getmodule(inspect.unwrap(function))
    try:
        # Include both the module named in the config and the module that defines the function, because a package may
        # only re-export it.
        named = inspect.getsource(importlib.import_module(module))
        written = inspect.getsource(defined) if defined is not None else ""
        return "\n".join([value, canonical(named), canonical(written)])
    except (OSError, TypeError, SyntaxError):
        raise ConfigError(
            f"is {value!r}, but {module} has no Python source, so changes in the function would not be detected: call "
            "the function from your own module",
            key=key,
        ) from None


def did_you_mean(name: str, names: Iterable[Any]) -> str:
    """`; did you mean 'X'?` for the most similar name; empty if no name is similar."""
    close = get_close_matches(name, [str(other) for other in names], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _import_module(value: str, name: str, key: str) -> Any:
    try:
        if name not in sys.modules:
            try_in_child(lambda: importlib.import_module(name))
        return importlib.import_module(name)
    except WorkerEnded as error:
        raise ConfigError(
            f"is {value!r}, but importing {name} ends the process: {error.how}: put the code that runs as a "
            'script under `if __name__ == "__main__":`',
            key=key,
        ) from None
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"is {value!r}, but {name} cannot be imported ({type(error).__name__}: {error}): "
            "check that the folder of the module is in PYTHONPATH",
            key=key,
        ) from error


def _origin(function: Any) -> str:
    """The module in which the callable is defined."""
    while isinstance(function, functools.partial):
        function = function.func
    module = getattr(function, "__module__", None)
    if module is None:  # a method of a class implemented in C
        of = getattr(function, "__objclass__", None) or type(getattr(function, "__self__", None))
        module = of.__module__
    return str(module)
