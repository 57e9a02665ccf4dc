"""Where a pretrained model is, a folder or a repository of the hub, and what its config.json says."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data.base.errors import ConfigError, cannot_be, from_here
from data.base.paths import refuse_path
from data.hub.client import REQUEST_SECONDS, first_line, quiet
from data.hub.reach import why_offline
from data.hub.repository_files import check_contents, nested_too_deeply
from train.hf.config_json import model_values

KEY = "model.pretrained_model_name_or_path"
INDEX = "model.safetensors.index.json"
FILES_TO_FETCH = [
    *("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt"),
    *("chat_template*", "*.safetensors", INDEX),
]
"""Of a repository on the hub."""
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


def read_values(name: str) -> tuple[dict[str, Any], str]:
    """ModelConfig's keys as the config.json of a folder or hub name has them, and where that was found.

    Raises ConfigError when there is none, or it is of another architecture.
    """
    path = find_folder(name)
    return read_config_json(name, (path if path is not None else fetch(name, ["config.json"])) / "config.json")


@contextlib.contextmanager
def errors_name_the_key(subject: str) -> Iterator[None]:
    """What is wrong with a file becomes a ConfigError of KEY; `subject` says what that is."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{subject}, but {cannot_be('read', error.filename, error)}", key=KEY) from None
    except ValueError as error:
        raise ConfigError(f"{subject}, but {error}", key=KEY) from None


def read_config_json(name: str, file: Path) -> tuple[dict[str, Any], str]:
    subject = f"is {name!r}"
    hub_name = None if find_folder(name) is not None else name
    if not file.is_file():
        raise ConfigError(
            f"{subject}, but there is no config.json in it: name a folder that transformers loads", key=KEY
        )
    with errors_name_the_key(subject):
        try:
            contents = json.loads(file.read_text(encoding="utf-8"))
        except RecursionError:
            raise nested_too_deeply(file, hub_name) from None
        except ValueError:
            raise ValueError(f"its config.json is not JSON ({file}): download or copy it again") from None
        if not isinstance(contents, dict):
            raise ValueError(f"its config.json holds no mapping ({file})")
        check_contents(contents, file, hub_name)
        return model_values(contents), str(file)


def no_weights(names: list[str]) -> str:
    pickles = sorted(name for name in names if any(Path(name).match(pattern) for pattern in _PICKLES))
    if pickles:
        return (
            f"its weights are pickles alone ({', '.join(pickles[:3])}), which can run code as they are opened: convert "
            "them to safetensors (transformers' save_pretrained)"
        )
    return "there are no safetensors files in it: name what has them"


def find_folder(name: str) -> Path | None:
    """The folder that is meant; None for what is a name on the hub."""
    refuse_path(KEY, name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    subject = f"is {name!r}"
    if path.exists():
        raise ConfigError(f"{subject}, a file: name the folder that holds config.json and safetensors files", key=KEY)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(
            f"{subject}, but there is no such folder{from_here(name)}, and a name on the hub looks like "
            "databricks/dbrx-base",
            key=KEY,
        )
    return None


def fetch(name: str, patterns: list[str]) -> Path:
    """The folder in the hub's cache with these files. Asks the hub where it can be asked."""
    from huggingface_hub import errors, snapshot_download

    subject, offline = f"is {name!r}", why_offline()
    try:
        if offline is None:
            _ask_hub(name)
        with quiet() if patterns == ["config.json"] else contextlib.nullcontext():
            return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline is not None))
    except errors.HFValidationError:
        raise ConfigError(
            f"{subject}, which is neither a folder that is there nor a name on the hub", key=KEY
        ) from None
    except errors.LocalEntryNotFoundError as error:  # an OSError too
        why = offline or first_line(error)
        raise ConfigError(
            f"{subject}, which is no folder here, and not in the hub's cache; {why}: fetch it where there is a network "
            f"(hf download {name}), or name a folder",
            key=KEY,
        ) from None
    except (errors.HfHubHTTPError, OSError) as error:  # requests' errors are OSErrors
        raise ConfigError(f"{subject}, but it cannot be fetched from the hub ({first_line(error)})", key=KEY) from None


def _ask_hub(name: str) -> None:
    """Raises ConfigError when the repository is not there, may not be read, or holds no safetensors DBRX."""
    import requests
    from huggingface_hub import HfApi, errors

    api, subject = HfApi(), f"is {name!r}"
    try:
        info = api.model_info(name, timeout=REQUEST_SECONDS)
        if info.gated:
            api.auth_check(name)
    except errors.GatedRepoError:
        raise ConfigError(
            f"{subject}, to which the hub gives access on request only: ask for it on the model's page, and log in "
            "with `hf auth login` or HF_TOKEN",
            key=KEY,
        ) from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(
            f"{subject}, which is no folder here, and the hub has no such model, or not for you: look for a slip in "
            "the name; for a private one log in with `hf auth login` or HF_TOKEN",
            key=KEY,
        ) from None
    except (errors.HfHubHTTPError, requests.RequestException) as error:
        raise ConfigError(
            f"{subject}, but the hub does not tell what it holds ({first_line(error)})", key=KEY
        ) from None
    names = [file.rfilename for file in info.siblings or []]
    if not any(name.endswith(".safetensors") for name in names):
        raise ConfigError(f"{subject}, but {no_weights(names)}", key=KEY)


def write_json(path: Path, contents: Mapping[str, object]) -> None:
    path.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
