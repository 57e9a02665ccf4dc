"""Attempts: only those of killed processes are removed."""

import multiprocessing
import os
import signal

import pytest

from data.mds.writer import UNFINISHED
from data.preparation.parts import attempts


def start_and_die(folder):
    with attempts.attempt(folder, 1) as place:
        (place / "shard").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / UNFINISHED).mkdir()
    process = multiprocessing.get_context("fork").Process(target=start_and_die, args=(tmp_path,))
    process.start()
    process.join(60)
    assert len(list((tmp_path / UNFINISHED).iterdir())) == 1
    return tmp_path


def test_only_attempts_of_killed_processes_are_removed(folder):
    with attempts.attempt(folder, 2) as place:
        attempts.remove_killed(folder)
        assert list((folder / UNFINISHED).iterdir()) == [place]
    assert not list((folder / UNFINISHED).iterdir())


def test_attempts_of_other_machines_remain(folder, monkeypatch):
    (killed,) = (folder / UNFINISHED).iterdir()
    monkeypatch.setattr(attempts, "_prefix", lambda: "attempt-other-")
    attempts.remove_killed(folder)
    assert (killed / "shard").exists()
