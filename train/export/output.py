"""Where an export is written to: a folder, or one in an object store, to which it is sent from a folder here."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.base.console import logger
from data.base.errors import ConfigError
from data.base.redaction import is_address
from train.checkpoint.remote.folder import store_errors_named
from train.checkpoint.remote.staging import STAGING, open_remote

_LAST = ("config.json", "adapter_config.json")
"""What makes a folder a model or an adapter: who finds it finds the other files too."""


@contextmanager
def output_folder(place: str, key: str) -> Iterator[Path]:
    """The folder to write the export to, which is sent at the end where the place is in a store. key: what names it.

    Raises ConfigError, before anything is written, when the store refuses or there are objects already.
    """
    if not is_address(place):
        yield Path(place)
        return
    store = open_remote(place, key).store
    with store_errors_named(key):
        if there := store.sizes():
            raise ConfigError(f"is {place!r}, but there are {len(there)} objects, such as {min(there)}", key=key)
    STAGING.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STAGING, prefix="export-") as made:
        folder = Path(made, "export")
        yield folder
        logger.info(f"sending it to {place}")
        with store_errors_named(key):
            store.send_folder(folder, "", last=next(name for name in _LAST if (folder / name).is_file()))
