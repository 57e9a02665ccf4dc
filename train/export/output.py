"""The output of an export: a local folder, or a temporary local folder that is uploaded to an object store."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.base.console import logger
from data.base.errors import ConfigError
from data.secrets.redaction import is_address
from train.checkpoint.remote.folder import store_errors_named
from train.checkpoint.remote.staging import STAGING, open_remote

_LAST = ("config.json", "adapter_config.json")
"""Files that identify a folder as a model or an adapter. They are uploaded last, after all other files."""


@contextmanager
def output_folder(place: str, key: str) -> Iterator[Path]:
    """Yield the local folder to write the export to. If `place` is in an object store, the folder is temporary and is
    uploaded at the end. key: the name of the setting in messages.

    Raises ConfigError before anything is written if the store refuses access, or already contains objects at `place`.
    """
    if not is_address(place):
        yield Path(place)
        return
    store = open_remote(place, key).store
    with store_errors_named(key):
        if there := store.sizes():
            raise ConfigError(
                f"is {place!r}, which already contains {len(there)} objects, such as {min(there)}", key=key
            )
    STAGING.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STAGING, prefix="export-") as made:
        folder = Path(made, "export")
        yield folder
        logger.info(f"sending the export to {place}")
        with store_errors_named(key):
            store.send_folder(folder, "", last=next(name for name in _LAST if (folder / name).is_file()))
