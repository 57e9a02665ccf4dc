"""Which commit of a dataset there is on the Hugging Face hub, or in the hub's cache."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.base.errors import ConfigError
from data.config.dataset import DatasetConfig
from data.hub.client import REQUEST_SECONDS, first_line, quiet
from data.hub.reach import why_offline
from data.sources.formats.names import DATA_SUFFIXES

CARD = ["README.md", ".huggingface.yaml"]
"""Files that say which subsets and splits there are."""


@dataclass(frozen=True)
class Commit:
    """What of a dataset is there."""

    dataset: str
    sha: str
    files: dict[str, int]
    """Path in the repository -> bytes (0 where it is not known)."""
    card: Path
    """The snapshot's folder in the hub's cache, with the card in it if there is one."""
    offline: str | None
    """Why the hub was not asked."""


def find_commit(config: DatasetConfig, name: str) -> Commit:
    """Of the revision, or of the main branch. Raises ConfigError when it is not there, or may not be read."""
    from huggingface_hub.errors import HFValidationError

    offline = why_offline()
    try:
        return _cached_commit(config, name, offline) if offline is not None else _hub_commit(config, name)
    except HFValidationError:
        raise ConfigError(
            f"is {name!r}, which is neither a file or folder that is there nor a name on the hub such as "
            "tatsu-lab/alpaca",
            key="hf_name",
        ) from None


def _hub_commit(config: DatasetConfig, name: str) -> Commit:
    import requests
    from huggingface_hub import HfApi, errors

    api, revision = HfApi(), config.hf_kwargs.revision
    try:
        info = api.dataset_info(name, revision=revision, timeout=REQUEST_SECONDS, files_metadata=True)
        if info.gated:
            api.auth_check(name, repo_type="dataset")
        card = _snapshot(name, revision)
    except errors.GatedRepoError:
        raise ConfigError(
            f"is {name!r}, to which the hub gives access on request only: ask for it on the dataset's page, "
            "and log in with `hf auth login` or HF_TOKEN",
            key="hf_name",
        ) from None
    except errors.RevisionNotFoundError:
        raise ConfigError(
            f"is {revision!r}, but {name!r} has no such branch, tag or commit", key="hf_kwargs.revision"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(
            f"is {name!r}, but the hub has no such dataset, or not for you: look for a slip in the name; for a "
            "private one log in with `hf auth login` or HF_TOKEN; a local file's name ends in "
            f"{', '.join(DATA_SUFFIXES)}",
            key="hf_name",
        ) from None
    except (errors.HfHubHTTPError, requests.RequestException, errors.LocalEntryNotFoundError) as error:
        raise ConfigError(
            f"is {name!r}, but the hub does not tell what it holds ({first_line(error)})", key="hf_name"
        ) from None
    assert info.sha is not None
    if card.name != info.sha:
        raise ConfigError(f"is {name!r}, which was changed on the hub in this moment: start again", key="hf_name")
    # No name may lead out of the folder that stands for the repository.
    inside = [file for file in info.siblings or [] if not {"/", ".."} & set(PurePosixPath(file.rfilename).parts)]
    files = {file.rfilename: file.size or 0 for file in inside}
    return Commit(name, info.sha, files, card, None)


def _snapshot(name: str, revision: str | None, *, local_only: bool = False) -> Path:
    """The commit's folder in the hub's cache, with the card. Notes there which commit the revision is."""
    from huggingface_hub import snapshot_download

    with quiet():
        folder = snapshot_download(
            name, repo_type="dataset", revision=revision, allow_patterns=CARD, local_files_only=local_only
        )
    return Path(folder)


def _cached_commit(config: DatasetConfig, name: str, offline: str) -> Commit:
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = _snapshot(name, config.hf_kwargs.revision, local_only=True)
    except LocalEntryNotFoundError:
        revision = f" at revision {config.hf_kwargs.revision!r}" if config.hf_kwargs.revision is not None else ""
        raise ConfigError(
            f"is {name!r}, but {offline}, and the dataset is not in the hub's cache{revision} "
            f"({constants.HF_HUB_CACHE}): start once where there is a network, copy the cache from there, or name "
            "local files",
            key="hf_name",
        ) from None
    record = record_of(config, name, folder.name)
    if record.is_file():
        return Commit(name, folder.name, json.loads(record.read_text()), folder, offline)
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    return Commit(name, folder.name, files, folder, offline)


def record_of(config: DatasetConfig, name: str, sha: str) -> Path:
    """Where the list of a commit's files is kept: the hub's cache alone cannot tell a download that was cut off."""
    return Path(config.cache_dir) / "hub" / f"{name.replace('/', '--')}@{sha}.json"
