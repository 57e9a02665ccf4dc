"""Fetch a file of a remote folder with Streaming's downloaders and a time limit."""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from data.base.errors import ConfigError
from data.hub.reach import why_offline
from data.mds.remote import deadlines
from data.mds.remote.deadlines import Silence, in_time
from data.stores.failures import FetchError, fetch_error, is_worth_a_retry, raise_if_full

WAITS = (1, 2, 4)
"""Seconds between retries."""


def check_scheme(remote: str) -> None:
    """Raises ConfigError for a remote that Streaming does not support, or that needs a package that is not
    installed."""
    from streaming.base.storage import CloudDownloader
    from streaming.base.storage.download import DOWNLOADER_MAPPINGS

    try:
        CloudDownloader.get(remote)
    except ImportError as error:
        raise ConfigError(
            f"is {remote!r}, which requires a package that is not installed ({error}): install the package",
            key="remote",
        ) from None
    except ValueError:
        known = ", ".join(f"{scheme}://" for scheme in DOWNLOADER_MAPPINGS if scheme)
        raise ConfigError(f"is {remote!r}, but it must be a path or begin with one of {known}", key="remote") from None


def check_network(remote: str) -> None:
    """Raises FetchError if the remote is on the hub and the hub cannot be reached. huggingface_hub would first retry
    for a minute."""
    if urlsplit(remote).scheme == "hf":
        reason = why_offline()
        if reason is not None:
            raise FetchError(reason)


def fetch(
    url: str,
    folder: Path,
    find_defect: Callable[[Path], str | None] = lambda file: None,
    silence: Silence | None = None,
    waits: Sequence[float] | None = None,
) -> Path:
    """Download the URL to a file below the folder, and return the path of the file. `silence` measures for how long no
    bytes have arrived. A caller that also reads this time can pass its own object.

    `find_defect` returns the defect of the downloaded file, or None. A failed download is retried, unless the remote
    denied the request or the disk is full. Raises FetchError if the download fails, and OSError if the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    silence = silence or Silence(folder)
    for wait in (*(WAITS if waits is None else waits), None):
        target = Path(tempfile.mkdtemp(dir=folder)) / PurePosixPath(url).name
        try:
            in_time(lambda target=target: _download(url, target), silence.is_long)
            defect = find_defect(target)
            if defect is None:
                return target
            failure = FetchError(defect)
        except Exception as error:
            raise_if_full(error)
            failure = fetch_error(error)
            if isinstance(error, TimeoutError) or not is_worth_a_retry(error):
                raise failure from None
        shutil.rmtree(target.parent, ignore_errors=True)
        if wait is None:
            raise failure
        time.sleep(wait)
    raise AssertionError


def _download(url: str, target: Path) -> None:
    from streaming.base.storage import CloudDownloader

    # A new client is created for each file, because a client that was created before a fork would share its connections
    # with other workers.
    downloader = CloudDownloader.get(url)
    try:
        downloader.download(url, str(target), deadlines.QUIET)
    finally:
        downloader.clean_up()
