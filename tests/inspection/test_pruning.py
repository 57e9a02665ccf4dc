"""`checkpoint.py prune`: what is deleted, and what is never deleted."""

from pathlib import Path

import pytest

from data.base.errors import ConfigError
from tests.helpers.saved_checkpoints import CONFIG, flip, write_save_folder
from train.checkpoint.owner import own
from train.inspection.pruning import plan, prune


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name[0] != "." or path.name.startswith(".part"))


def test_a_plan_lists_what_is_deleted_and_changes_nothing(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10, 20, 30)
    (folder / ".part-ep0-ba40").mkdir()
    before = names(folder)
    planned = plan(folder, keep=2)
    assert [line.split(" (")[0] for line in planned.lines()] == [
        "delete ep0-ba10",
        "delete .part-ep0-ba40",
        "keep ep0-ba20, ep0-ba30",
    ]
    assert planned.size == sum(file.stat().st_size for file in (folder / "ep0-ba10").iterdir())
    assert names(folder) == before


def test_superseded_checkpoints_and_leftovers_are_deleted(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10, 20, 30)
    (folder / ".part-ep0-ba40").mkdir()
    prune(folder, keep=1)
    assert names(folder) == ["config.yaml", "ep0-ba30"]


@pytest.mark.parametrize(
    ("interval", "why"),
    [
        ("10ba", "multiples of 20 batches are kept, because save_interval is 10ba in config.yaml"),
        ("5120tok", "multiples of 20 batches are kept, because save_interval is 5120tok in config.yaml"),
        ("0.1dur", "multiples of 20 batches are kept, because save_interval is 0.1dur in config.yaml"),
        (
            "1ep",
            "save_interval, 1ep, is not in batches, and the checkpoints before the newest are at multiples of 10",
        ),
    ],
)
def test_every_nth_checkpoint_is_kept(tmp_path: Path, interval: str, why: str) -> None:
    folder = write_save_folder(tmp_path, 10, 20, 30, 40, 50, 55)
    (folder / "config.yaml").write_text(CONFIG.replace("save_interval: 10ba", f"save_interval: {interval}"))
    planned = plan(folder, keep=1, keep_every=2)
    assert [path.name for path in planned.kept] == ["ep0-ba20", "ep0-ba40", "ep0-ba55"]
    assert why in next(planned.lines())


def test_an_unknown_interval_is_an_error(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10)
    (folder / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="--keep_every requires the number of batches between two checkpoints"):
        plan(folder, keep=1, keep_every=2)


def test_nothing_is_deleted_without_a_verified_checkpoint_to_keep(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10, 20)
    flip(folder / "ep0-ba20" / "__0_0.distcp")
    (folder / ".part-ep0-ba30").mkdir()
    before = names(folder)
    with pytest.raises(ConfigError, match=r"none of the checkpoints to keep in .* \(ep0-ba20\) could be verified"):
        prune(folder, keep=1)
    assert names(folder) == before


def test_one_verified_checkpoint_to_keep_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_save_folder(tmp_path, 10, 20, 30)
    flip(folder / "ep0-ba30" / "__0_0.distcp")
    prune(folder, keep=2)
    assert names(folder) == ["config.yaml", "ep0-ba20", "ep0-ba30"]
    assert "warning: ep0-ba30: corrupt: __0_0.distcp" in capsys.readouterr().out


def test_a_checkpoint_without_its_manifest_is_deleted_if_another_is_verified(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10, 20)
    (folder / "ep0-ba20" / "manifest.json").unlink()
    prune(folder, keep=1)
    assert names(folder) == ["config.yaml", "ep0-ba10"]
    (folder / "ep0-ba10" / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"none of the checkpoints to keep in .* \(none\) could be verified"):
        prune(folder, keep=1)
    assert names(folder) == ["config.yaml", "ep0-ba10"]


def test_the_folder_of_a_running_run_is_refused(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10, 20)
    with own(folder, "mine"), pytest.raises(ConfigError, match=r"belongs to run 'mine' .* that run is alive"):
        prune(folder, keep=1)
    assert names(folder) == ["config.yaml", "ep0-ba10", "ep0-ba20"]
