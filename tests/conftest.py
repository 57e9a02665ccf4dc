"""Fixtures of several test files."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path) -> Path:
    """An MDS folder of texts, in several shards."""
    from mds_folders import write_texts  # imports for seconds what most files do not need

    return write_texts(tmp_path / "mds")
