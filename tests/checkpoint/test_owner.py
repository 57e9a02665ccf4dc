"""One run owns a save folder: which runs are refused, when it is taken over, and what the heartbeat survives."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from data.base.console import notice
from data.base.errors import ConfigError, DataError
from train.checkpoint import owner
from train.checkpoint.owner import LOCK_FILE, check_unowned, own

ELSEWHERE = {"host": "node-7", "boot_id": "of-node-7"}


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT", 0.02), ("STALE", 0.1), ("POLL", 0.01), ("SETTLE", 0.01), ("_PATIENCE", 2.0)):
        monkeypatch.setattr(owner, name, seconds)
    notice.cache_clear()


def write_lock(folder: Path, **changes: Any) -> Path:
    """Write the lock file of a run that has ended or is on another machine."""
    record = replace(owner._this_process("before"), token="another", **changes)
    folder.mkdir(exist_ok=True)
    (folder / LOCK_FILE).write_bytes(owner._serialize(record))
    return folder / LOCK_FILE


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / LOCK_FILE).read_bytes())


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught, own(folder, "mine"):
        pass
    assert caught.value.key == "save_folder"
    return str(caught.value)


@contextmanager
def beating(file: Path) -> Iterator[None]:
    """Renew the lock file like an owner on another machine. Waits are long because the machine of the test may be
    slow."""
    ended, stale = threading.Event(), owner.STALE

    def beat() -> None:
        while not ended.wait(owner.BEAT):
            os.utime(file)

    thread = threading.Thread(target=beat)
    thread.start()
    owner.STALE = 30.0
    try:
        yield
    finally:
        owner.STALE = stale
        ended.set()
        thread.join()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_folder_is_created_owned_and_released(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x"
    check_unowned(folder)
    with own(folder, "mine") as mine:
        mine.check()
        found = content(folder)
        assert (found["run_name"], found["pid"], found["host"]) == ("mine", os.getpid(), socket.gethostname())
    assert [path.name for path in folder.iterdir()] == [owner.FLOCK]
    with own(folder, "again"):
        pass


def test_a_running_owner_on_this_machine_is_named_without_waiting(tmp_path: Path, capsys) -> None:
    with own(tmp_path, "first"):
        with pytest.raises(ConfigError, match="run 'first'") as caught:
            check_unowned(tmp_path)
        assert refusal(tmp_path) == str(caught.value)
        assert f"host {socket.gethostname()!r}, pid {os.getpid()}, since '20" in str(caught.value)
        assert content(tmp_path)["run_name"] == "first"
    assert "waiting" not in capsys.readouterr().out


@pytest.mark.subprocess
def test_the_lock_of_a_killed_run_is_taken_over_immediately(tmp_path: Path, capsys) -> None:
    script = "import sys, pathlib, time; from train.checkpoint.owner import own\n"
    script += "with own(pathlib.Path(sys.argv[1]), 'first'): print('owns', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "owns\n"
        assert f"pid {run.pid}" in refusal(tmp_path)
        run.send_signal(signal.SIGSTOP)  # a stopped process is still alive
        assert f"pid {run.pid}" in refusal(tmp_path)
        run.kill()
        while psutil.Process(run.pid).status() != psutil.STATUS_ZOMBIE:  # its exit code has not been read
            time.sleep(0.01)
        with own(tmp_path, "second") as second:
            second.check()
    out = capsys.readouterr().out
    assert f"taken over from run 'first' (host {socket.gethostname()!r}, pid {run.pid}" in out
    assert "waiting" not in out


def test_a_process_that_reuses_the_pid_of_the_owner_is_not_the_owner(tmp_path: Path) -> None:
    write_lock(tmp_path, started=owner.start_time(os.getpid()) - 1)
    check_unowned(tmp_path)
    with own(tmp_path, "mine"):
        assert content(tmp_path)["run_name"] == "mine"


def test_setting_the_clock_does_not_change_the_identity_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lock(tmp_path)
    monkeypatch.setattr(psutil, "boot_time", lambda: 0.0)
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert "run 'before'" in refusal(tmp_path)


def test_a_hidden_process_is_judged_by_its_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, mine = write_lock(tmp_path), owner._this_process("mine")

    def hidden(pid: int) -> float:
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(owner, "_this_process", lambda name: mine)
    monkeypatch.setattr(owner, "start_time", hidden)
    check_unowned(tmp_path)
    with beating(file):
        assert "run 'before'" in refusal(tmp_path)
    with own(tmp_path, "mine"):
        pass


@pytest.mark.parametrize("change", [{"host": "node-7"}, {"boot_id": "earlier"}, {"pid_namespace": "pid:[1]"}])
def test_a_remote_owner_with_a_heartbeat_is_refused(tmp_path: Path, change, capsys) -> None:
    file = write_lock(tmp_path, pid=2**31 - 1, **change)
    check_unowned(tmp_path)  # passes, because the owner's state is unknown
    with beating(file):
        assert "run 'before'" in refusal(tmp_path)
    assert content(tmp_path)["token"] == "another"
    assert "to see whether its owner is alive: run 'before' (host " in capsys.readouterr().out


@pytest.mark.parametrize("seconds", [-3600, -0.05, 0, 3600], ids=["long ago", "just now", "now", "in the future"])
def test_a_remote_owner_without_a_heartbeat_is_taken_over(tmp_path: Path, seconds: float, capsys) -> None:
    file = write_lock(tmp_path, **ELSEWHERE)  # with the pid of a running process on this machine
    last = time.time() + seconds
    os.utime(file, (last, last))
    began = time.monotonic()
    with own(tmp_path, "mine") as mine:
        waited = time.monotonic() - began
        mine.check()
    assert waited >= owner.BEAT + (0 if seconds < -1 else owner.STALE - 0.05 if seconds < 0 else owner.STALE)
    assert "taken over from run 'before' (host 'node-7'" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_remote_owner_with_a_wrong_clock_is_alive_if_its_heartbeat_advances(
    tmp_path, monkeypatch, seconds: float
) -> None:
    monkeypatch.setattr(owner, "BEAT", 30.0)
    file = write_lock(tmp_path, **ELSEWHERE)
    os.utime(file, (time.time() + seconds,) * 2)
    beat = threading.Timer(0.05, os.utime, (file, (time.time() + seconds + 1,) * 2))
    beat.start()
    assert "run 'before'" in refusal(tmp_path)
    beat.join()


def test_the_folder_of_a_remote_owner_that_ends_meanwhile_is_taken(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(owner, "STALE", 30.0)
    file = write_lock(tmp_path, **ELSEWHERE)
    end = threading.Timer(0.05, file.unlink)
    end.start()
    with own(tmp_path, "mine"):
        pass
    assert "taken over" not in capsys.readouterr().out
    end.join()


DAMAGES = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "no JSON": lambda data: b"\xff\x00" + data,
    "a list": lambda data: b"[]",
    "nested": lambda data: b"[" * 60_000,
    "large": lambda data: b" " * 2**20 + data,
    "another type": lambda data: data.replace(b'"pid": ', b'"pid": 0.0'),
    "a flipped bit of the pid": lambda data: data.replace(b'"pid": ', b'"pid": 1'),
    "a flipped bit of the token": lambda data: data.replace(b'"another"', b'"bnother"'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_judged_by_its_heartbeat(tmp_path: Path, damage) -> None:
    file = write_lock(tmp_path, pid=2**30)
    file.write_bytes(damage(file.read_bytes()))
    check_unowned(tmp_path)
    with beating(file):
        assert "an unknown run (.owner.json is damaged)" in refusal(tmp_path)
    with own(tmp_path, "mine") as mine:
        mine.check()


def test_every_flipped_bit_is_detected_or_harmless() -> None:
    record = owner._this_process("mine")
    data = owner._serialize(record)
    for at in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        assert owner._parse(bytes(flipped)) in (None, record)


def test_values_of_the_lock_file_are_checked_even_with_a_valid_checksum(tmp_path: Path) -> None:
    for key, value in {"pid": -1, "started": "now", "run_name": None, "more": 1}.items():
        fields = {**asdict(owner._this_process("mine")), key: value}
        assert owner._parse(json.dumps({**fields, "crc32": owner._checksum(fields)}).encode()) is None


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: file.symlink_to("nowhere")], ids=["a pipe", "a link"])
def test_a_link_or_pipe_in_place_of_the_lock_file_is_handled(tmp_path: Path, make) -> None:
    make(tmp_path / LOCK_FILE)
    with own(tmp_path, "mine") as mine:
        mine.check()


def test_a_folder_in_place_of_the_lock_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).mkdir()
    check_unowned(tmp_path)
    assert refusal(tmp_path) == f"save_folder {tmp_path} cannot be written: Is a directory"


def test_a_run_whose_folder_was_taken_over_saves_nothing_more(tmp_path: Path) -> None:
    with own(tmp_path, "mine") as mine:
        file = write_lock(tmp_path, **ELSEWHERE)
        before = file.stat().st_mtime_ns
        time.sleep(3 * owner.BEAT)
        assert file.stat().st_mtime_ns == before
        with pytest.raises(DataError, match=r"taken over by run 'before' \(host 'node-7'"):
            mine.check()
    assert content(tmp_path)["token"] == "another"


def test_a_folder_that_was_deleted_meanwhile_is_not_created_again(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    with own(folder, "mine") as mine:
        for path in folder.iterdir():
            path.unlink()
        with pytest.raises(DataError, match=r"\.owner\.json was deleted"):
            mine.check()
        folder.rmdir()
        time.sleep(2 * owner.BEAT)
        with pytest.raises(DataError, match=r"\.owner\.json was deleted"):
            mine.check()
    assert not folder.exists()


def test_the_heartbeat_advances_and_repairs_the_file(tmp_path: Path) -> None:
    file = tmp_path / LOCK_FILE
    with own(tmp_path, "mine") as mine:
        before, whole = file.stat().st_mtime_ns, file.read_bytes()
        until(lambda: file.stat().st_mtime_ns > before)
        file.write_bytes(whole[:-9])
        mine.check()
        assert file.read_bytes() == whole


def test_the_heartbeat_continues_after_a_disk_was_full_or_read_only(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / LOCK_FILE
    with own(tmp_path, "mine") as mine:
        with monkeypatch.context() as patch:
            patch.setattr(os, "utime", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
            time.sleep(3 * owner.BEAT)
            mine.check()
            before = file.stat().st_mtime_ns
        until(lambda: file.stat().st_mtime_ns > before)


@pytest.mark.parametrize(("number", "kind"), [(28, DataError), (30, ConfigError)])
def test_an_unwritable_folder_raises_a_config_or_data_error(tmp_path: Path, monkeypatch, number, kind) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(owner, "_write", refuse)
    with pytest.raises(kind, match=f"save_folder {tmp_path} (has no space left|cannot be written)"):
        with own(tmp_path, "mine"):
            pass


@pytest.mark.parametrize("missing", ["flock", "links"])
def test_file_systems_without_links_or_flock_are_supported(tmp_path: Path, monkeypatch, missing: str) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    if missing == "flock":
        monkeypatch.setattr("data.base.locks.fcntl.flock", refuse)
    else:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    write_lock(tmp_path, started=1.0)
    for name in ("first", "second"):
        with own(tmp_path, name) as mine:
            mine.check()
            assert f"run {name!r}" in refusal(tmp_path)


def test_a_forked_child_neither_beats_nor_releases(tmp_path: Path) -> None:
    with own(tmp_path, "mine") as mine:
        if (child := os.fork()) == 0:
            names = {thread.name for thread in threading.enumerate()}
            mine._release()
            os._exit("owner-heartbeat" in names)
        assert os.waitpid(child, 0)[1] == 0
        mine.check()


def race(folder: Path, number: int, barrier: Any, results: Any, flock: bool) -> None:
    if not flock:
        owner._one_at_a_time = no_flock
    barrier.wait()
    with suppress(ConfigError):
        with own(folder, f"run {number}") as mine:
            barrier.wait()  # wait until all processes have tried
            mine.check()
            results.put(number)
            return
    barrier.wait()


@contextmanager
def no_flock(folder: Path) -> Iterator[bool]:
    yield False


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("before", "flock"),
    [(None, False), ({"started": 1.0}, True), ({"started": 1.0}, False), (ELSEWHERE, True)],
    ids=["free, no flock", "dead", "dead, no flock", "dead elsewhere"],
)
def test_exactly_one_of_many_simultaneous_starts_wins(tmp_path: Path, before, flock: bool, monkeypatch) -> None:
    monkeypatch.setattr(owner, "SETTLE", 0.2)
    context, n = multiprocessing.get_context("fork"), 6
    if before is not None:
        write_lock(tmp_path, **before)
    barrier, results = context.Barrier(n), context.SimpleQueue()
    runs = [context.Process(target=race, args=(tmp_path, i, barrier, results, flock)) for i in range(n)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    results.put(None)
    assert [run.exitcode for run in runs] == [0] * n
    assert len(list(iter(results.get, None))) == 1
