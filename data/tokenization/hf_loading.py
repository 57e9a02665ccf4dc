"""Loads a tokenizer of the transformers library from a folder or the hub, once its files are found safe to read."""

from pathlib import Path
from typing import Any

from data.base.errors import ConfigError, from_here
from data.base.redaction import redacted
from data.hub.repository_files import CHECKED, check_json_files, refuse_links

_REASON_LENGTH = 300
"""Characters of a message of transformers that are shown at most."""


def load_hf(name: str) -> Any:
    """Raises ConfigError when there is no such folder or name, or it cannot be read."""
    from transformers import AutoTokenizer

    from data.hub.reach import why_offline

    path = Path(name).expanduser()
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not path.is_dir():
        raise ConfigError(f"is {name!r}, but there is no such folder{from_here(name)}", key="tokenizer.name")
    offline = None if path.is_dir() else why_offline()
    try:
        if path.is_dir():
            # What it reads can be saved beside a checkpoint.
            refuse_links(path)
            check_json_files(path)
            return AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
        commit = _check_on_hub(name, offline)
        return AutoTokenizer.from_pretrained(
            name, revision=commit, trust_remote_code=False, local_files_only=offline is not None
        )
    except ConfigError as error:
        raise ConfigError(f"is {name!r}, but {error}", key="tokenizer.name") from None
    except (
        Exception
    ) as error:  # transformers raises OSError, ValueError, KeyError, ImportError and bare Exceptions here
        if offline is not None:
            raise ConfigError(
                f"is {name!r}, which is neither a folder here nor in the hub's cache, and the hub "
                f"cannot be asked ({offline}): give a Hugging Face folder",
                key="tokenizer.name",
            ) from error
        raise ConfigError(f"is {name!r}, but {_why_not_loaded(path, error)}", key="tokenizer.name") from error


def _check_on_hub(name: str, offline: str | None) -> str:
    """Checks a repository's JSON files, which are fetched; returns their commit, of which alone the rest may be."""
    from huggingface_hub import snapshot_download

    from data.hub.client import quiet

    with quiet():
        folder = snapshot_download(name, allow_patterns=list(CHECKED), local_files_only=offline is not None)
    check_json_files(Path(folder), name)
    return Path(folder).name


def _why_not_loaded(folder: Path, error: Exception) -> str:
    """What is wrong with the folder or repository that transformers raised this for, and what to do."""
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    reason = redacted((str(error).strip() or "no reason given").splitlines()[0])
    if folder.is_dir() and not any(name.startswith(("tokenizer.", "vocab.", "spiece.")) for name in names):
        return "there is no tokenizer.json in it: save one there with transformers' tokenizer.save_pretrained"
    # The rest of this message lists every architecture that transformers knows.
    if reason.startswith("Unrecognized model") and folder.is_dir():
        return (
            "neither a config.json with a model_type nor a tokenizer_class in a tokenizer_config.json says of which "
            "class its tokenizer is: copy the one that belongs to it, or write a tokenizer_config.json with "
            '{"tokenizer_class": "PreTrainedTokenizerFast"} and its special tokens'
        )
    if len(reason) > _REASON_LENGTH:
        reason = f"{reason[: _REASON_LENGTH - 3]}..."
    return (
        f"no tokenizer could be loaded from there ({type(error).__name__}: {reason}): give a Hugging Face folder or "
        "name that needs no code of its own, or `tiktoken`"
    )
