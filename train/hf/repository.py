"""Find a pretrained model in a folder or on the hub, and read its config.json."""

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
"""Patterns of the files to fetch from a repository on the hub."""
_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


def read_values(name: str) -> tuple[dict[str, Any], str]:
    """Return the values of ModelConfig in the config.json of a folder or hub repository, and the path of this
    config.json.

    Raises ConfigError if there is no config.json, or if it describes a model of another architecture.
    """
    path = find_folder(name)
    return read_config_json(name, (path if path is not None else fetch(name, ["config.json"])) / "config.json")


@contextlib.contextmanager
def errors_name_the_key(subject: str) -> Iterator[None]:
    """Convert an OSError or ValueError that is raised in this context to a ConfigError for the key KEY. `subject`: the
    beginning of the message."""
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
        raise ConfigError(f"{subject}, but it has no config.json: specify a folder that transformers can load", key=KEY)
    with errors_name_the_key(subject):
        try:
            contents = json.loads(file.read_text(encoding="utf-8"))
        except RecursionError:
            raise nested_too_deeply(file, hub_name) from None
        except ValueError:
            raise ValueError(f"its config.json is not JSON ({file}): download or copy it again") from None
        if not isinstance(contents, dict):
            raise ValueError(f"its config.json does not contain a mapping ({file})")
        check_contents(contents, file, hub_name)
        return model_values(contents), str(file)


def no_weights(names: list[str]) -> str:
    pickles = sorted(name for name in names if any(Path(name).match(pattern) for pattern in _PICKLES))
    if pickles:
        return (
            f"its weights are only available as pickles ({', '.join(pickles[:3])}), which can execute code when they "
            "are loaded: convert them to safetensors (transformers' save_pretrained)"
        )
    return "it has no safetensors files: specify a model that has safetensors files"


def find_folder(name: str) -> Path | None:
    """Return the folder at the path `name`, or None if `name` is the name of a repository on the hub. Raises
    ConfigError if `name` is neither."""
    refuse_path(KEY, name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    subject = f"is {name!r}"
    if path.exists():
        raise ConfigError(
            f"{subject}, which is a file: specify the folder with config.json and the safetensors files", key=KEY
        )
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ConfigError(
            f"{subject}, but this folder does not exist{from_here(name)}, and the name of a model on the hub has the "
            "form OWNER/NAME, such as databricks/dbrx-base",
            key=KEY,
        )
    return None


def fetch(name: str, patterns: list[str]) -> Path:
    """Fetch files from the hub into the local cache, and return their folder. Uses only the cache if the hub is not
    available."""
    from huggingface_hub import errors, snapshot_download

    subject, offline = f"is {name!r}", why_offline()
    try:
        if offline is None:
            _ask_hub(name)
        with quiet() if patterns == ["config.json"] else contextlib.nullcontext():
            return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=offline is not None))
    except errors.HFValidationError:
        raise ConfigError(f"{subject}, which is neither an existing folder nor a name on the hub", key=KEY) from None
    except errors.LocalEntryNotFoundError as error:  # caught before OSError, because it is a subclass of OSError
        why = offline or first_line(error)
        raise ConfigError(
            f"{subject}, which is neither a local folder nor in the local cache of the hub; {why}: download the model "
            f"on a machine with a network connection (hf download {name}), or specify a folder",
            key=KEY,
        ) from None
    except (errors.HfHubHTTPError, OSError) as error:  # requests' errors are OSErrors
        raise ConfigError(f"{subject}, but it cannot be fetched from the hub ({first_line(error)})", key=KEY) from None


def _ask_hub(name: str) -> None:
    """Raise ConfigError if the repository does not exist, is not accessible, or contains no safetensors files."""
    import requests
    from huggingface_hub import HfApi, errors

    api, subject = HfApi(), f"is {name!r}"
    try:
        info = api.model_info(name, timeout=REQUEST_SECONDS)
        if info.gated:
            api.auth_check(name)
    except errors.GatedRepoError:
        raise ConfigError(
            f"{subject}, a gated repository: request access on the model's page, and log in with `hf auth login` or "
            "HF_TOKEN",
            key=KEY,
        ) from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(
            f"{subject}, which is neither a local folder nor a model on the hub that you can access: check the "
            "spelling; for a private model, log in with `hf auth login` or HF_TOKEN",
            key=KEY,
        ) from None
    except (errors.HfHubHTTPError, requests.RequestException) as error:
        raise ConfigError(f"{subject}, but the hub cannot list its files ({first_line(error)})", key=KEY) from None
    names = [file.rfilename for file in info.siblings or []]
    if not any(name.endswith(".safetensors") for name in names):
        raise ConfigError(f"{subject}, but {no_weights(names)}", key=KEY)


def write_json(path: Path, contents: Mapping[str, object]) -> None:
    path.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
