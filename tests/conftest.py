"""Fixtures of several test files."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path) -> Path:
    """An MDS folder of texts, in several shards."""
    from mds_folders import write_texts  # imports for seconds what most files do not need

    return write_texts(tmp_path / "mds")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A save folder with one checkpoint of a small model."""
    from small_export import write_run  # as above

    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    write_run(folder)
    return folder
