"""Load a tokenizer of the transformers library from a folder or the hub, after checking that its files are safe."""

from pathlib import Path
from typing import Any

from data.base.errors import ConfigError, from_here
from data.hub.repository_files import CHECKED, check_json_files, refuse_links
from data.secrets.redaction import redacted

_REASON_LENGTH = 300
"""Messages from transformers are truncated to this number of characters."""


def load_hf(name: str) -> Any:
    """Raises ConfigError if the folder or name does not exist or cannot be read."""
    from transformers import AutoTokenizer

    from data.hub.reach import why_offline

    path = Path(name).expanduser()
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not path.is_dir():
        raise ConfigError(f"is {name!r}, but no such folder exists{from_here(name)}", key="tokenizer.name")
    offline = None if path.is_dir() else why_offline()
    try:
        if path.is_dir():
            # Links are refused, because the files that are read here may later be copied to a checkpoint.
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
                f"is {name!r}, which is neither a local folder nor in the hub's cache, and the hub "
                f"cannot be reached ({offline}): use the local folder of a Hugging Face tokenizer",
                key="tokenizer.name",
            ) from error
        raise ConfigError(f"is {name!r}, but {_why_not_loaded(path, error)}", key="tokenizer.name") from error


def _check_on_hub(name: str, offline: str | None) -> str:
    """Download and check a repository's JSON files. Returns the commit of these files. All other files must be read
    from the same commit."""
    from huggingface_hub import snapshot_download

    from data.hub.client import quiet

    with quiet():
        folder = snapshot_download(name, allow_patterns=list(CHECKED), local_files_only=offline is not None)
    check_json_files(Path(folder), name)
    return Path(folder).name


def _why_not_loaded(folder: Path, error: Exception) -> str:
    """A message that explains which defect in the folder or repository caused this error in transformers, and how to
    fix the defect."""
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    reason = redacted((str(error).strip() or "no reason given").splitlines()[0])
    if folder.is_dir() and not any(name.startswith(("tokenizer.", "vocab.", "spiece.")) for name in names):
        return "it contains no tokenizer.json: create this file with transformers' tokenizer.save_pretrained"
    # Only this part of the message is used, because the rest lists all architectures that transformers supports.
    if reason.startswith("Unrecognized model") and folder.is_dir():
        return (
            "the class of its tokenizer is unknown: the folder has neither a config.json with a model_type nor a "
            "tokenizer_config.json with a tokenizer_class: copy the missing file from the model, or write "
            'a tokenizer_config.json with {"tokenizer_class": "PreTrainedTokenizerFast"} and the special tokens'
        )
    if len(reason) > _REASON_LENGTH:
        reason = f"{reason[: _REASON_LENGTH - 3]}..."
    return (
        f"its tokenizer cannot be loaded ({type(error).__name__}: {reason}): use a Hugging Face tokenizer that "
        "requires no custom code, or `tiktoken`"
    )
