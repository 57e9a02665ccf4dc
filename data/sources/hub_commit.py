"""Find the commit of a dataset on the Hugging Face hub, or in the hub's cache."""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.base.errors import ConfigError
from data.config.dataset import DatasetConfig
from data.hub.client import REQUEST_SECONDS, first_line, quiet
from data.hub.reach import why_offline
from data.sources.formats.names import DATA_SUFFIXES, either

CARD = ["README.md", ".huggingface.yaml"]
"""Files that define subsets and splits."""


@dataclass(frozen=True)
class Commit:
    """One commit of a dataset and its files."""

    dataset: str
    sha: str
    files: dict[str, int]
    """Maps the path of each file in the repository to its size in bytes (0 if unknown)."""
    card: Path
    """The snapshot folder in the hub's cache. It contains the dataset card if the dataset has one."""
    offline: str | None
    """The reason why the hub was not contacted; None if the hub was contacted."""


def find_commit(config: DatasetConfig, name: str) -> Commit:
    """The commit of the revision, or of the main branch if no revision is set. Raises ConfigError if the revision does
    not exist or access is denied."""
    from huggingface_hub.errors import HFValidationError

    offline = why_offline()
    try:
        return _cached_commit(config, name, offline) if offline is not None else _hub_commit(config, name)
    except HFValidationError:
        raise ConfigError(
            f"is {name!r}, which is neither an existing file or folder nor a valid name on the hub such as "
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
            f"is {name!r}, a gated dataset: request access on the dataset's page, "
            "and log in with `hf auth login` or HF_TOKEN",
            key="hf_name",
        ) from None
    except errors.RevisionNotFoundError:
        raise ConfigError(
            f"is {revision!r}, but {name!r} has no such branch, tag or commit", key="hf_kwargs.revision"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(
            f"is {name!r}, but the hub has no such dataset, or you have no access to it: check the spelling; for a "
            "private dataset log in with `hf auth login` or HF_TOKEN; the name of a local file must end in "
            f"{either(DATA_SUFFIXES)}",
            key="hf_name",
        ) from None
    except (errors.HfHubHTTPError, requests.RequestException, errors.LocalEntryNotFoundError) as error:
        raise ConfigError(
            f"is {name!r}, but its files cannot be listed on the hub ({first_line(error)})", key="hf_name"
        ) from None
    assert info.sha is not None
    if card.name != info.sha:
        raise ConfigError(f"is {name!r}, which was just changed on the hub: start again", key="hf_name")
    # No file name may point outside the repository's folder.
    inside = [file for file in info.siblings or [] if not {"/", ".."} & set(PurePosixPath(file.rfilename).parts)]
    files = {file.rfilename: file.size or 0 for file in inside}
    return Commit(name, info.sha, files, card, None)


def _snapshot(name: str, revision: str | None, *, local_only: bool = False) -> Path:
    """The commit's folder in the hub's cache, with the dataset card. Also caches the commit to which the revision
    refers."""
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
            f"({constants.HF_HUB_CACHE}): run once with a network connection, copy the cache from another machine, or "
            "use local files",
            key="hf_name",
        ) from None
    record = record_of(config, name, folder.name)
    if record.is_file():
        return Commit(name, folder.name, json.loads(record.read_text()), folder, offline)
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    return Commit(name, folder.name, files, folder, offline)


def record_of(config: DatasetConfig, name: str, sha: str) -> Path:
    """Path of the file in which a commit's list of files is saved. The list is needed because the hub's cache does not
    show whether a download is complete."""
    return Path(config.cache_dir) / "hub" / f"{name.replace('/', '--')}@{sha}.json"
