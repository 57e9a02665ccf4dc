"""Fixtures of the tests of preparation."""

import pytest


@pytest.fixture
def small_pieces(monkeypatch):
    """Small inputs have many chunks, windows, shards and slices."""
    monkeypatch.setattr("data.sources.formats.content.BLOCK_BYTES", 700)
    monkeypatch.setattr("data.preparation.parts.plan.SLICE_BYTES", 2000)
    monkeypatch.setattr("data.preparation.parts.plan.ROWS_PER_SLICE", 1)
    monkeypatch.setattr("data.preparation.parts.write.WINDOW_TOKENS", 1500)
    monkeypatch.setattr("data.mds.writer.SHARD_BYTES", 5000)
