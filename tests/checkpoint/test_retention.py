"""Which checkpoints a run keeps."""

from pathlib import Path

import pytest

from train.checkpoint.retention import Retention, remove

PRESENT = [Path(f"ep0-ba{batch}") for batch in (2, 4, 6, 8, 10, 12)]


@pytest.mark.parametrize(
    ("retention", "batch", "superseded"),
    [
        (Retention(newest=-1), 12, []),
        (Retention(newest=2), 12, [2, 4, 6, 8]),
        (Retention(newest=6), 12, []),
        (Retention(newest=1, every=4), 12, [2, 6, 10]),
        (Retention(newest=2, every=6), 12, [2, 4, 8]),
        # 10 and 12 are of a time before a fallback.
        (Retention(newest=1), 8, [2, 4, 6]),
    ],
)
def test_the_newest_and_every_kth_are_kept(retention: Retention, batch: int, superseded: list[int]) -> None:
    assert retention.superseded(PRESENT, batch) == [Path(f"ep0-ba{number}") for number in superseded]


def test_a_removal_that_is_interrupted_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "ep0-ba2"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").touch()
    monkeypatch.setattr("train.checkpoint.retention.shutil.rmtree", lambda path: None)
    remove(checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == [".part-removed-ep0-ba2"]
