"""Which checkpoints a run keeps."""

from pathlib import Path

import pytest

from train.checkpoint.retention import KEEP, Retention
from train.checkpoint.save_folder import remove

PRESENT = [Path(f"ep0-ba{batch}") for batch in (2, 4, 6, 8, 10, 12)]


@pytest.mark.parametrize(
    ("retention", "batch", "superseded"),
    [
        (Retention(newest=-1), 12, []),
        (Retention(newest=2), 12, [2, 4, 6, 8]),
        (Retention(newest=6), 12, []),
        (Retention(newest=1, every=4), 12, [2, 6, 10]),
        (Retention(newest=2, every=6), 12, [2, 4, 8]),
        # 10 and 12 were saved before the run fell back to an earlier checkpoint.
        (Retention(newest=1), 8, [2, 4, 6]),
    ],
)
def test_the_newest_and_every_kth_are_kept(retention: Retention, batch: int, superseded: list[int]) -> None:
    assert retention.superseded(PRESENT, batch) == [Path(f"ep0-ba{number}") for number in superseded]


def test_an_interrupted_deletion_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "ep0-ba2"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").touch()
    monkeypatch.setattr("train.checkpoint.save_folder.shutil.rmtree", lambda path: None)
    remove(checkpoint)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".part-removed-ep0-ba2-")


def test_pinned_checkpoints_are_kept_under_other_settings(tmp_path: Path) -> None:
    present = [tmp_path / f"ep0-ba{batch}" for batch in (4, 5, 6)]
    for path in present:
        path.mkdir()
    (present[0] / KEEP).touch()
    assert Retention(newest=1, every=3).superseded(present, 6) == [present[1]]
    assert Retention(newest=1).superseded(present, 6) == [present[1]]
