"""Check the JSON files and chat templates of a model's or tokenizer's repository before transformers reads them.

Some keys in these files make transformers run code, download code from the hub, or read or write files outside the
folder (CVE-2026-4372, CVE-2026-9856). KEYS and TOKENIZER_KEYS list these keys, according to the source of transformers
4.53, 4.57.6 and 5.24. A file that is not valid JSON is skipped, because transformers cannot load it.
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
"""The files whose keys transformers passes to the tokenizer's class, which opens each `..._file` as a path."""
JSON_FILES = ("config.json", "generation_config.json", *TOKENIZER_FILES)
TEMPLATES = "additional_chat_templates"
"""The folder of additional chat templates, with a file NAME.jinja for each."""
CHECKED = (*JSON_FILES, f"{TEMPLATES}/*")
"""Files of a hub repository that must be downloaded for the checks in this module."""

Place = tuple[str | int, ...]
"""The keys and list indices on the path to a value."""


class Rule(NamedTuple):
    does: str
    """The effect of this key in transformers, as a verb phrase that follows `which`."""
    allowed: str = ""
    """A pattern that matches harmless strings. null, false and empty values are harmless for every key."""
    strings_only: bool = False
    """If true, mappings and lists are harmless, so that only strings are checked."""


_CODE = "specifies code of a repository to run"
_KERNEL = "can specify a kernel, which is code downloaded from the hub"
_ATTENTION, _EXPERTS = "eager|sdpa|flex_attention", "eager|grouped_mm|batched_mm"
_PATH = "is a path that is opened, and may be copied when the tokenizer is saved"

KEYS: dict[str, Rule] = {
    # These rules apply to all files and at any depth, because a config may contain other configs.
    "auto_map": Rule(_CODE),
    "attn_implementation": Rule(_KERNEL, _ATTENTION),
    "_attn_implementation": Rule(_KERNEL, _ATTENTION),
    "_attn_implementation_internal": Rule(_KERNEL),  # transformers up to 5.3 uses it without a check; never saved
    "experts_implementation": Rule(_KERNEL, _EXPERTS),
    "_experts_implementation": Rule(_KERNEL, _EXPERTS),
    "_experts_implementation_internal": Rule(_KERNEL),
    "configuration_files": Rule("specifies another file to read instead of config.json, perhaps outside the folder"),
    "transformers_weights": Rule("specifies weights other than the folder's own, perhaps outside the folder"),
    "tokenizer_class": Rule(
        "specifies a class that is not a tokenizer", r"(?!Auto|Rag)\w+(Tokenizer|TokenizerFast|Backend)"
    ),
    "model_type": Rule("has its tokenizers in subfolders, which are not checked", "(?!rag$).*"),
}

TOKENIZER_KEYS: dict[str, Rule] = {
    "init_inputs": Rule("passes arguments to the tokenizer's class, the first of which is a path"),
    "fast_tokenizer_files": Rule("specifies files that may be outside the folder", r"tokenizer\.[\w.-]*json"),
    # This key is often present. It contains the path of the tokenizer when it was saved, which transformers does not
    # read.
    "special_tokens_map_file": Rule(_PATH, ".*"),
    "vocab": Rule(_PATH, strings_only=True),
    "merges": Rule(_PATH, strings_only=True),
    "source_spm": Rule(_PATH),
    "target_spm": Rule(_PATH),
    "mecab_option": Rule("is a command line with paths"),
    "sudachi_config_path": Rule(_PATH),
    "sudachi_resource_dir": Rule(_PATH),
}
"""Additional rules for a tokenizer's files, at any depth."""
_ANY_FILE = Rule(_PATH)
"""The rule for all other keys of a tokenizer that end in _file."""
_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_-]+")
_HASH = re.compile(r"(?<![0-9a-f])([0-9a-f]{30,128})(?![0-9a-f])")
"""Matches file names in content-addressed stores: the hub's cache, DVC (whose names lack the first two digits of the
hash), git-annex (SHA256E-s12--HASH.json)."""


def check_json_files(folder: Path, hub_name: str | None = None) -> None:
    """Raises ConfigError for the first harmful key or template name in the folder.

    If the folder is a repository's copy in the hub's cache, `hub_name` is the name of the repository.
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
    # transformers uses each template's name as a path when it saves the templates.
    for file in sorted((folder / TEMPLATES).rglob("*.jinja")):
        name = file.relative_to(folder / TEMPLATES).as_posix().removesuffix(".jinja")
        if not _TEMPLATE_NAME.fullmatch(name):
            raise ConfigError(f"{_of(folder / TEMPLATES, hub_name)} has a chat_template called {shown(name)}, {_NAMES}")


def check_contents(contents: Mapping[str, Any], file: Path, hub_name: str | None = None) -> None:
    """Apply the checks of check_json_files to the content of one JSON file."""
    try:
        _check_keys(contents, file, hub_name)
    except RecursionError:  # since Python 3.12, json can read values that are nested too deeply for Python functions
        raise nested_too_deeply(file, hub_name) from None


def check_saved_tokenizer(folder: Path) -> None:
    """Apply check_json_files to the tokenizer folder of a run, and check all other files in this folder too, because an
    export copies them."""
    check_json_files(folder)
    refuse_code_beside(folder)
    for path in sorted(folder.rglob("*")):
        _refuse_link(path, folder)
        if not _may_be_saved(path, folder):
            raise ConfigError(
                f"{_printable(str(path))} is not a file of a tokenizer, but an export would copy it: remove the file "
                f"(this folder may only contain {TEMPLATES}/*.jinja, and files whose names do not end in .py)"
            )


def _check_keys(contents: Mapping[str, Any], file: Path, hub_name: str | None) -> None:
    for place, value in _walk(contents):
        rule = _rule(file.name, place)
        if rule is None or not _is_refused(value, rule):
            continue
        raise ConfigError(
            f"{_of(file, hub_name)} has {_dotted(place)} {shown(value)}, which {rule.does}: Dropless never runs a "
            f"repository's code or reads files outside of the repository, so {_hint(file, place, hub_name)}"
        )
    for name in _template_names(contents.get("chat_template")):
        if not isinstance(name, str) or not _TEMPLATE_NAME.fullmatch(name):
            raise ConfigError(f"{_of(file, hub_name)} has a chat_template called {shown(name)}, {_NAMES}")


def refuse_code_beside(folder: Path) -> None:
    """Raises ConfigError for files that make transformers run code or load another model when it loads the model."""
    for name, does in (
        ("custom_generate/generate.py", "is code that transformers 4 runs when it loads the model"),
        ("adapter_config.json", "makes transformers load another model, perhaps from the hub"),
    ):
        if (folder / name).exists():
            raise ConfigError(f"{folder / name} {does}: remove the file, or use a folder without this file")


def _may_be_saved(path: Path, folder: Path) -> bool:
    """Whether the file may belong to a saved tokenizer. False for links to folders, because such links can form a
    cycle."""
    if path.parent == folder / TEMPLATES:
        return path.is_file() and path.suffix == ".jinja"
    if path == folder / TEMPLATES:
        return path.is_dir() and not path.is_symlink()
    return path.parent == folder and path.is_file() and path.suffix.lower() != ".py"


def refuse_links(folder: Path) -> None:
    """Raises ConfigError if a file that transformers may read is a link to a file outside the folder. Used for folders
    that the user specifies.

    Links to weights are allowed. Links to files of the same name are allowed too, because many users keep tokenizer
    files in a shared folder and link to them. A downloaded folder may also contain such links, and their targets would
    be copied when the tokenizer is saved, but a file with the name of a tokenizer file does not contain secrets.
    """
    for path in sorted([*folder.glob("*"), *(folder / TEMPLATES).rglob("*")]):
        if path.suffix != ".safetensors":
            _refuse_link(path, folder, same_name=not _blobs(folder))


def refuse_links_in_hub_cache(folder: Path) -> None:
    """Raises ConfigError if any file of a downloaded repository is a link to a file outside of the repository. Links
    made by the hub's cache are allowed."""
    for path in sorted(folder.rglob("*")):
        _refuse_link(path, folder)


def _blobs(folder: Path) -> list[Path]:
    """If the folder is in the hub's cache, the cache's folder `blobs` for this repository. In the cache,
    snapshots/COMMIT/config.json is a link to ../../blobs/HASH."""
    root = folder.resolve()
    is_cached = root.parent.name == "snapshots" and root.parents[1].name.startswith("models--")
    return [root.parents[1] / "blobs"] if is_cached else []


def _refuse_link(path: Path, folder: Path, *, same_name: bool = False) -> None:
    if not path.is_symlink():
        return
    target = Path(os.path.realpath(path))  # unlike resolve(), realpath() accepts cyclic links
    if any(target.is_relative_to(root) for root in (folder.resolve(), *_blobs(folder))):
        return
    if same_name and target.is_file() and (target.name == path.name or _HASH.search(target.name)):
        return
    hint = "the file"
    if same_name:
        hint += f" (links to a file that is also named {_printable(path.name)} are allowed)"
    raise ConfigError(
        f"{_printable(str(path))} is a link to {shown(str(target))}, outside of the folder: Dropless reads no files "
        "outside of the folder, because the target could be copied when the folder is saved: replace the link with a "
        f"copy of {hint}"
    )


def nested_too_deeply(file: Path, hub_name: str | None = None) -> ConfigError:
    """The error for a file whose values are nested too deeply to be checked. Other parsers may be able to read such a
    file."""
    return ConfigError(
        f"{_of(file, hub_name)} cannot be checked, because its values are nested too deeply (hundreds of levels, while "
        "a model's files have fewer than ten): remove these values, or use another copy of the file"
    )


_NAMES = (
    "which would become a path when the tokenizer is saved: rename the template using only letters, digits, _ and "
    "-, or remove the template (transformers itself uses default, tool_use and rag)"
)


def _walk(contents: Any) -> Iterator[tuple[Place, Any]]:
    """A pair (keys, value) for each key at any depth: `keys` is the path to the value."""
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
        return not rule.strings_only and any(_is_refused(item, rule) for item in value)
    if isinstance(value, str):
        return bool(value) and not re.fullmatch(rule.allowed, value)
    return bool(value) and not rule.strings_only


def _template_names(templates: Any) -> list[Any]:
    """The names in `templates`, which is a list of {name, template}, a mapping by name, or a single template without a
    name."""
    if isinstance(templates, list):
        return [template.get("name") for template in templates if isinstance(template, Mapping)]
    return list(templates) if isinstance(templates, Mapping) else []


def _of(file: Path, hub_name: str | None) -> str:
    return str(file) if hub_name is None else f"{file.name} of {hub_name} on the hub"


def _dotted(place: Place) -> str:
    return _printable(".".join(map(str, place)))


def _printable(text: str) -> str:
    """Escape control characters. Keys and file names are untrusted too, and could otherwise control the terminal."""
    return text if text.isprintable() else shown(text)


def _hint(file: Path, place: Place, hub_name: str | None) -> str:
    if hub_name is not None:
        folder = hub_name.rpartition("/")[2]
        own = f"`{shlex.join(['hf', 'download', hub_name, '--local-dir', folder])}`"
        return f"download a copy ({own}), delete the key there, and use that folder"
    # A JSON string is also a valid Python string, and contains no characters that a terminal or shell interprets.
    keys = "".join(f"[{json.dumps(key)}]" for key in place)
    code = f'p = {json.dumps(str(file))}; c = json.load(open(p)); del c{keys}; json.dump(c, open(p, "w"), indent=2)'
    return f"delete the key: python -c {shlex.quote(f'import json; {code}')}"
