"""`checkpoint.py prune`: what is deleted, and what never is."""

from pathlib import Path

import pytest

from data.base.errors import ConfigError
from tests.helpers.saved_checkpoints import CONFIG, flip, write_save_folder
from train.checkpoint.owner import own
from train.inspection.pruning import plan, prune


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name[0] != "." or path.name.startswith(".part"))


def test_a_plan_says_what_is_deleted_and_deletes_nothing(tmp_path: Path) -> None:
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
        ("10ba", "multiple of 20 batches stay, because save_interval is 10ba in config.yaml"),
        ("5120tok", "multiple of 20 batches stay, because save_interval is 5120tok in config.yaml"),
        ("0.1dur", "multiple of 20 batches stay, because save_interval is 0.1dur in config.yaml"),
        (
            "1ep",
            "save_interval, 1ep, is not in batches, and the checkpoints before the newest are at multiples of 10",
        ),
    ],
)
def test_every_so_many_checkpoints_one_is_kept(tmp_path: Path, interval: str, why: str) -> None:
    folder = write_save_folder(tmp_path, 10, 20, 30, 40, 50, 55)
    (folder / "config.yaml").write_text(CONFIG.replace("save_interval: 10ba", f"save_interval: {interval}"))
    planned = plan(folder, keep=1, keep_every=2)
    assert [path.name for path in planned.kept] == ["ep0-ba20", "ep0-ba40", "ep0-ba55"]
    assert why in next(planned.lines())


def test_an_unknown_interval_is_an_error(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10)
    (folder / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="--keep_every needs the batches between two checkpoints"):
        plan(folder, keep=1, keep_every=2)


def test_the_last_that_is_right_is_not_deleted(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10, 20)
    flip(folder / "ep0-ba20" / "__0_0.distcp")
    (folder / ".part-ep0-ba30").mkdir()
    before = names(folder)
    with pytest.raises(ConfigError, match=r"none of the checkpoints .* that would stay \(ep0-ba20\) could be verified"):
        prune(folder, keep=1)
    assert names(folder) == before


def test_one_that_is_right_among_those_that_stay_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_save_folder(tmp_path, 10, 20, 30)
    flip(folder / "ep0-ba30" / "__0_0.distcp")
    prune(folder, keep=2)
    assert names(folder) == ["config.yaml", "ep0-ba20", "ep0-ba30"]
    assert "warning: ep0-ba30: corrupt: __0_0.distcp" in capsys.readouterr().out


def test_what_has_lost_its_manifest_is_deleted_where_another_is_right(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10, 20)
    (folder / "ep0-ba20" / "manifest.json").unlink()
    prune(folder, keep=1)
    assert names(folder) == ["config.yaml", "ep0-ba10"]
    (folder / "ep0-ba10" / "manifest.json").unlink()
    with pytest.raises(ConfigError, match=r"that would stay \(none\) could be verified"):
        prune(folder, keep=1)
    assert names(folder) == ["config.yaml", "ep0-ba10"]


def test_the_folder_of_a_run_that_is_alive_is_left_alone(tmp_path: Path) -> None:
    folder = write_save_folder(tmp_path, 10, 20)
    with own(folder, "mine"), pytest.raises(ConfigError, match=r"belongs to run 'mine' .* that run is alive"):
        prune(folder, keep=1)
    assert names(folder) == ["config.yaml", "ep0-ba10", "ep0-ba20"]
