"""Lines of JSON files, and the provenance that a start records."""

import json
import subprocess
from pathlib import Path

import pytest

from data.base.errors import ConfigError
from train.supervision import provenance
from train.supervision.provenance import environment, git_state
from train.supervision.record_file import Record, append_line


def test_numbers_that_are_not_finite_are_text(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    append_line(tmp_path / "x", {"a": nan, "b": [inf, 1.5], "c": {"d": -inf}})
    assert json.loads((tmp_path / "x").read_text()) == {"a": "nan", "b": ["inf", 1.5], "c": {"d": "-inf"}}


def test_a_record_is_in_both_folders_once(tmp_path: Path) -> None:
    logs, saved = tmp_path / "logs", tmp_path / "saved"
    for folder in (logs, saved):
        folder.mkdir()
    Record({"save_folder": saved, "log_folder": logs}).add({"batch": 1})
    Record({"save_folder": saved, "log_folder": saved}).add({"batch": 2})
    Record({"save_folder": None, "log_folder": None}).add({"batch": 3})
    read = {
        f.name: [json.loads(t)["batch"] for t in (f / "record.jsonl").read_text().splitlines()] for f in (logs, saved)
    }
    assert read == {"logs": [1], "saved": [1, 2]}


def test_a_line_refused_by_one_folder_is_written_to_the_other(tmp_path: Path) -> None:
    gone, logs = tmp_path / "gone", tmp_path
    with pytest.raises(ConfigError, match=r"save_folder .*gone"):
        Record({"save_folder": gone, "log_folder": logs}).add({"batch": 1})
    assert json.loads((logs / "record.jsonl").read_text())["batch"] == 1


def test_the_state_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *names, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    assert git_state(tmp_path) is None
    git("init", "-b", "trunk")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "x")
    commit = git("rev-parse", "HEAD").strip()
    (tmp_path / "untracked").touch()
    assert git_state(tmp_path) == {"commit": commit, "branch": "trunk", "dirty": False}
    (tmp_path / "file").write_text("2")
    git("checkout", "--detach")
    assert git_state(tmp_path) == {"commit": commit, "branch": None, "dirty": True}
    (tmp_path / "below").mkdir()
    assert git_state(tmp_path / "below") is None  # code that is installed inside another repository
    monkeypatch.setattr(provenance, "_GIT", ("no-such-program",))
    assert git_state(tmp_path) is None


def test_the_environment_of_a_start() -> None:
    found = environment()
    assert found.keys() == {"python", "platform", "hostname", "cpus", "memory_bytes"}
    assert found["cpus"] >= 1
    assert found["memory_bytes"] > 2**20
