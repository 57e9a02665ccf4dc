"""The only reader of YAML: a file and `key=value` overrides become a TrainConfig, or a ConfigError that says it all."""

import dataclasses
import difflib
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from data.base.errors import ConfigError
from data.base.paths import refuse_path
from train.config.interpolation import VARIABLES, malformed, resolvers, unresolved, unused_variables
from train.config.model_values import Resolved, as_written, resolve_values
from train.config.schema import TrainConfig
from train.config.typed import Builder, show


def load_config(path: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads the YAML at `path`, changes it by `key=value` overrides, and checks all of it.

    Raises ConfigError, one line a problem.
    """
    return _load(path, overrides, resolve_values)


def load_saved_config(path: Path) -> TrainConfig:
    """Reads back what `to_yaml` wrote: all of it is there, and the weights that it began with need not be any more."""
    return _load(str(path), (), lambda tree: (tree, []))


def _load(path: str, overrides: Sequence[str], resolve: Callable[[dict[str, Any]], Resolved]) -> TrainConfig:
    tree = _read_yaml(path)
    for override in overrides:
        _apply(tree, override)
    _fail(path, resolvers(tree))
    unused = unused_variables(tree)
    try:
        resolved, problems = resolve(tree)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {unresolved(error, tree)}") from None
    tree = {key: value for key, value in resolved.items() if key != VARIABLES}
    builder = Builder(TrainConfig)
    config = builder.build(TrainConfig, tree, "")
    if builder.missing:
        problems.append(f"missing: {', '.join(builder.missing)}")
    _fail(path, problems + unused + builder.problems)
    return config


def _fail(path: str, problems: list[str]) -> None:
    if len(problems) == 1:
        raise ConfigError(f"{path}: {problems[0]}")
    if problems:
        raise ConfigError("\n".join([f"{path}: {len(problems)} problems", *(f"  {problem}" for problem in problems)]))


def check_vocab(config: TrainConfig, tokenizer_vocab_size: int) -> None:
    """Raises ConfigError when the tokenizer has ids that the model has no embedding for."""
    if config.model.vocab_size < tokenizer_vocab_size:
        raise ConfigError(
            f"model.vocab_size is {config.model.vocab_size}, but the tokenizer has {tokenizer_vocab_size} tokens: "
            f"write at least {math.ceil(tokenizer_vocab_size / 64) * 64}"
        )


def _read_yaml(path: str) -> dict[str, Any]:
    refuse_path("the config", path)
    file = Path(path)
    if not file.is_file():
        what = "is a folder, not a YAML file" if file.is_dir() else "does not exist"
        raise ConfigError(f"{path} {what}{_yamls_beside(file)}")
    try:
        text = file.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            raise ConfigError(f"{path} is empty")
        if not isinstance(node, yaml.MappingNode):
            kind = "a list" if isinstance(node, yaml.SequenceNode) else "text"
            raise ConfigError(f"{path} holds {kind}, but a config is a mapping: lines of `key: value`")
        try:
            # First, for it limits what aliases of aliases may expand to.
            return as_written(OmegaConf.load(io.StringIO(text)))
        except GrammarParseError:
            _fail(path, malformed(yaml.safe_load(text)))
            raise
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not YAML: it is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_yaml_problem(error)}") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: a config's keys are text: {_first_line(error)}") from None


def _yamls_beside(file: Path) -> str:
    folder = file if file.is_dir() else file.parent
    names = sorted(found.name for found in folder.glob("*.yaml")) if folder.is_dir() else []
    close = difflib.get_close_matches(file.name, names, n=1)
    if close:
        return f"; did you mean {folder / close[0]}?"
    return f"; in {folder} there are: {', '.join(names)}" if names else ""


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f", line {mark.line + 1}" if mark is not None else ""
    problem = _what(error)
    if "found duplicate key " in problem:
        return f"{place}: the key {problem.partition('found duplicate key ')[2]} is there twice"
    return f"{place}: not YAML: {problem}"


def _what(error: Exception) -> str:
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    return ", ".join(part for part in parts if part) or _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _apply(tree: dict[str, Any], override: str) -> None:
    """Sets one `a.b=value` in the tree; the value is YAML and replaces what was there."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"{override!r} is not key=value, such as optimizer.lr=1e-5")
    parts = key.split(".")
    if key.startswith("-") or not all(part.strip() for part in parts):
        raise ConfigError(f"{override!r} is not key=value: the key {key!r} must be names with dots between")
    try:
        value = as_written(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except GrammarParseError:
        raise ConfigError("\n".join(malformed(yaml.safe_load(text), key))) from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(
            f"{override!r}: the value is not YAML: {_what(error)}; text with signs needs quotes"
        ) from None
    node: Any = tree
    for depth, part in enumerate(parts[:-1]):
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = _step(node, part, override, parts[: depth + 1])
        if not isinstance(node, dict | list):
            raise ConfigError(f"{override}: {'.'.join(parts[: depth + 1])} is {show(node)}, which has no keys below it")
    if isinstance(node, list):
        _step(node, parts[-1], override, parts)
        node[int(parts[-1])] = value
    else:
        node[parts[-1]] = value


def _step(node: Any, part: str, override: str, parts: list[str]) -> Any:
    if isinstance(node, dict):
        return node[part]
    if part.isdecimal() and int(part) < len(node):
        return node[int(part)]
    above = ".".join(parts[:-1])
    raise ConfigError(f"{override}: {above} is a list of {len(node)}: {part!r} must be a number below {len(node)}")


def to_yaml(config: TrainConfig) -> str:
    """The resolved config; `load_config` reads it back as it was."""
    return OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config)))
