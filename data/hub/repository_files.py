"""JSON files and chat templates of a model's or tokenizer's repository, checked before transformers reads them.

Some of their keys make transformers run code, fetch it from the hub, or read or write files elsewhere (CVE-2026-4372,
CVE-2026-9856). KEYS and TOKENIZER_KEYS list them, from the source of transformers 4.53, 4.57.6 and 5.24. A file
that is not JSON is left to transformers, which reads the files as they are read here and refuses it.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data.base.errors import ConfigError
from data.base.paths import shown

TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json")
"""transformers gives every key of both to the tokenizer's class, where each `..._file` is a path that is opened."""
JSON_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)
TEMPLATES = "additional_chat_templates"
"""The folder of chat templates other than the default, each a file NAME.jinja."""
CHECKED = (*JSON_FILES, f"{TEMPLATES}/*")
"""What has to be here before a repository of the hub can be checked."""

Place = tuple[str | int, ...]
"""The keys that lead to a value."""


class Rule(NamedTuple):
    does: str
    """What the key makes transformers do."""
    allowed: str = ""
    """A pattern that harmless texts match. null, false and what is empty are harmless under any key."""
    texts_alone: bool = False
    """Whether mappings and lists are harmless."""


_CODE = "names code of a repository to run"
_KERNEL = "can name a kernel, which is code that is fetched from the hub"
_ATTENTION, _EXPERTS = "eager|sdpa|flex_attention", "eager|grouped_mm|batched_mm"
_PATH = "is a path that is opened, and may be copied when the tokenizer is saved"

KEYS: dict[str, Rule] = {
    # Any file, at any depth: a config may hold others.
    "auto_map": Rule(_CODE),
    "attn_implementation": Rule(_KERNEL, _ATTENTION),
    "_attn_implementation": Rule(_KERNEL, _ATTENTION),
    "_attn_implementation_internal": Rule(_KERNEL),  # until 5.3 it was taken as it is; nobody saves it
    "experts_implementation": Rule(_KERNEL, _EXPERTS),
    "_experts_implementation": Rule(_KERNEL, _EXPERTS),
    "_experts_implementation_internal": Rule(_KERNEL),
    "configuration_files": Rule("names another file to read instead of config.json, which may lie elsewhere"),
    "transformers_weights": Rule("names other weights than the folder's own, which may lie elsewhere"),
    "tokenizer_class": Rule("names a class that is no tokenizer", r"(?!Auto|Rag)\w+(Tokenizer|TokenizerFast|Backend)"),
    "model_type": Rule("has tokenizers in folders of their own, which are not checked", "(?!rag$).*"),
}

TOKENIZER_KEYS: dict[str, Rule] = {
    "init_inputs": Rule("gives the tokenizer's class arguments, the first of which is a path"),
    "fast_tokenizer_files": Rule("names files that may lie elsewhere", r"tokenizer\.[\w.-]*json"),
    "special_tokens_map_file": Rule(_PATH, ".*"),  # many have one: where it lay when the tokenizer was saved; not read
    "vocab": Rule(_PATH, texts_alone=True),
    "merges": Rule(_PATH, texts_alone=True),
    "source_spm": Rule(_PATH),
    "target_spm": Rule(_PATH),
    "mecab_option": Rule("is a command line, with paths"),
    "sudachi_config_path": Rule(_PATH),
    "sudachi_resource_dir": Rule(_PATH),
}
"""Of a tokenizer's files besides, at any depth."""
_ANY_FILE = Rule(_PATH)
"""Of every other key of a tokenizer that ends in _file."""
_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_-]+")
_HASH = re.compile(r"(?<![0-9a-f])([0-9a-f]{30,128})(?![0-9a-f])")
"""In the name of a file in a store that is addressed by content: the hub's cache, DVC (which cuts two digits off),
git-annex (SHA256E-s12--HASH.json)."""


def check_json_files(folder: Path, hub_name: str | None = None) -> None:
    """Raises ConfigError for the first key or name of a template in the folder that could do harm.

    hub_name: the repository whose copy in the hub's cache this is.
    """
    for name in JSON_FILES:
        file = folder / name
        try:
            contents = json.loads(file.read_text(encoding="utf-8"))
        except RecursionError:
            raise nested_too_deeply(file, hub_name) from None
        except (OSError, ValueError):
            continue
        if isinstance(contents, Mapping):
            check_contents(contents, file, hub_name)
    # transformers makes a path of each name again when it saves them.
    for file in sorted((folder / TEMPLATES).rglob("*.jinja")):
        name = file.relative_to(folder / TEMPLATES).as_posix().removesuffix(".jinja")
        if not _TEMPLATE_NAME.fullmatch(name):
            raise ConfigError(f"{_of(folder / TEMPLATES, hub_name)} has a chat_template called {shown(name)}, {_NAMES}")


def check_contents(contents: Mapping[str, Any], file: Path, hub_name: str | None = None) -> None:
    """The same for what was read from one of the JSON files."""
    try:
        _check_keys(contents, file, hub_name)
    except RecursionError:  # from Python 3.12 on, json reads deeper than Python's own functions may call each other
        raise nested_too_deeply(file, hub_name) from None


def check_saved_tokenizer(folder: Path) -> None:
    """The same for the tokenizer's folder of a run, and all else in it: an export copies it as a whole."""
    check_json_files(folder)
    refuse_code_beside(folder)
    for path in sorted(folder.rglob("*")):
        _refuse_link(path, folder)
        if not _may_be_saved(path, folder):
            raise ConfigError(
                f"{_printable(str(path))} is no file of a tokenizer, but an export would copy it: remove it (a run "
                f"leaves files beside each other, none of them *.py, and {TEMPLATES}/*.jinja)"
            )


def _check_keys(contents: Mapping[str, Any], file: Path, hub_name: str | None) -> None:
    for place, value in _walk(contents):
        rule = _rule(file.name, place)
        if rule is None or not _is_refused(value, rule):
            continue
        raise ConfigError(
            f"{_of(file, hub_name)} has {_dotted(place)} {shown(value)}, which {rule.does}: Dropless runs nothing of a "
            f"repository and reads nothing outside of it, so {_hint(file, place, hub_name)}"
        )
    for name in _template_names(contents.get("chat_template")):
        if not isinstance(name, str) or not _TEMPLATE_NAME.fullmatch(name):
            raise ConfigError(f"{_of(file, hub_name)} has a chat_template called {shown(name)}, {_NAMES}")


def refuse_code_beside(folder: Path) -> None:
    """Raises ConfigError for what makes transformers load code or another model when it loads the folder's model."""
    for name, does in (
        ("custom_generate/generate.py", "is code that transformers 4 runs when it loads the model"),
        ("adapter_config.json", "makes transformers load another model, which may lie on the hub"),
    ):
        if (folder / name).exists():
            raise ConfigError(f"{folder / name} {does}: remove it, or name a folder without it")


def _may_be_saved(path: Path, folder: Path) -> bool:
    """No link to a folder is: it may lead in circles."""
    if path.parent == folder / TEMPLATES:
        return path.is_file() and path.suffix == ".jinja"
    if path == folder / TEMPLATES:
        return path.is_dir() and not path.is_symlink()
    return path.parent == folder and path.is_file() and path.suffix.lower() != ".py"


def refuse_links(folder: Path) -> None:
    """Raises ConfigError for a file that transformers may read and that lies elsewhere, in a folder that a user names.

    Weights may do so, and files of the same name: many link the files of a tokenizer from a shared store. A folder that
    was downloaded may have links too, and what they lead to would be copied into what is saved; but no file of a
    tokenizer has the name of one that is secret.
    """
    for path in sorted([*folder.glob("*"), *(folder / TEMPLATES).rglob("*")]):
        if path.suffix != ".safetensors":
            _refuse_link(path, folder, same_name=not _blobs(folder))


def refuse_links_in_hub_cache(folder: Path) -> None:
    """Raises ConfigError for any file of a repository that was fetched and lies outside of it: links there are its
    cache's own."""
    for path in sorted(folder.rglob("*")):
        _refuse_link(path, folder)


def _blobs(folder: Path) -> list[Path]:
    """Of the hub's cache, in which snapshots/COMMIT/config.json is a link to ../../blobs/HASH."""
    root = folder.resolve()
    is_cached = root.parent.name == "snapshots" and root.parents[1].name.startswith("models--")
    return [root.parents[1] / "blobs"] if is_cached else []


def _refuse_link(path: Path, folder: Path, *, same_name: bool = False) -> None:
    if not path.is_symlink():
        return
    target = Path(os.path.realpath(path))  # which, unlike resolve, takes links that go round in circles
    if any(target.is_relative_to(root) for root in (folder.resolve(), *_blobs(folder))):
        return
    if same_name and target.is_file() and (target.name == path.name or _HASH.search(target.name)):
        return
    hint = "the file in its place"
    if same_name:
        hint += f" (a link to a file that is called {_printable(path.name)} too is followed)"
    raise ConfigError(
        f"{_printable(str(path))} is a link to {shown(str(target))}, outside of the folder: Dropless reads "
        f"nothing outside of it, because it could end up in what is saved, so remove the link, or put a copy of {hint}"
    )


def nested_too_deeply(file: Path, hub_name: str | None = None) -> ConfigError:
    """What cannot be read cannot be checked, while other parsers may take it."""
    return ConfigError(
        f"{_of(file, hub_name)} cannot be checked, because its values are nested too deeply (hundreds of levels, where "
        "a model's files have fewer than ten): remove these values, or take the file of another copy"
    )


_NAMES = (
    "which would become a path when the tokenizer is saved: names are of letters, digits, _ and - alone, so rename it "
    "or remove it (transformers itself uses default, tool_use and rag)"
)


def _walk(contents: Any) -> Iterator[tuple[Place, Any]]:
    """(keys, value) of every key at any depth."""
    left: list[tuple[Place, Any]] = [((), contents)]
    while left:
        place, value = left.pop()
        items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        for key, below in items:
            if isinstance(key, str):
                yield (*place, key), below
            left.append(((*place, key), below))


def _rule(file_name: str, place: Place) -> Rule | None:
    key = str(place[-1])
    if key in KEYS:
        return KEYS[key]
    if file_name not in TOKENIZER_FILES:
        return None
    return TOKENIZER_KEYS.get(key) or (_ANY_FILE if key.endswith("_file") else None)


def _is_refused(value: Any, rule: Rule) -> bool:
    if isinstance(value, list):
        return not rule.texts_alone and any(_is_refused(item, rule) for item in value)
    if isinstance(value, str):
        return bool(value) and not re.fullmatch(rule.allowed, value)
    return bool(value) and not rule.texts_alone


def _template_names(templates: Any) -> list[Any]:
    """A list of {name, template}, or a mapping of names; one template alone has no name."""
    if isinstance(templates, list):
        return [template.get("name") for template in templates if isinstance(template, Mapping)]
    return list(templates) if isinstance(templates, Mapping) else []


def _of(file: Path, hub_name: str | None) -> str:
    return str(file) if hub_name is None else f"{file.name} of {hub_name} on the hub"


def _dotted(place: Place) -> str:
    return _printable(".".join(map(str, place)))


def _printable(text: str) -> str:
    """Keys and names of files are as foreign as values, and may hold what moves a terminal's cursor."""
    return text if text.isprintable() else shown(text)


def _hint(file: Path, place: Place, hub_name: str | None) -> str:
    if hub_name is not None:
        folder = hub_name.rpartition("/")[2]
        own = f"`{shlex.join(['hf', 'download', hub_name, '--local-dir', folder])}`"
        return f"make a copy of your own ({own}), delete the key there, and name that folder"
    # As JSON, a text is one of Python's as well, and holds no character that a terminal or shell would obey.
    keys = "".join(f"[{json.dumps(key)}]" for key in place)
    code = f'p = {json.dumps(str(file))}; c = json.load(open(p)); del c{keys}; json.dump(c, open(p, "w"), indent=2)'
    return f"delete the key: python -c {shlex.quote(f'import json; {code}')}"
