"""The doctor on several ranks, and from its command line."""

import io
import json
import os
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.load_script import SCRIPTS, load_script
from tests.helpers.ranks import run_ranks
from tests.helpers.toy_run import write_toy_run
from train.doctor import collectives, folders, inputs

SMALL = {"cpu": (2**12, 2**16)}


def diagnose(path: str, seconds: float, absent: int, **faults: bool) -> tuple[int, str]:
    """Return the exit code and output of the doctor on this rank, which is a separate node; `absent` does not take
    part."""
    rank = int(os.environ["RANK"])
    os.environ.update(LOCAL_RANK="0", LOCAL_WORLD_SIZE="1", NODE_RANK=str(rank))
    if rank == absent:
        time.sleep(seconds)
        return 0, ""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.setattr(collectives, "_SIZES", SMALL)
        patch.setattr(folders, "_BYTES", 2**20)
        patch.setattr(inputs, "why_offline", lambda: "tests do not use the network")
        if rank == 1:
            now = time.time
            patch.setattr(time, "time", lambda: now() + 100)
        arguments = [path, f"--seconds={seconds}", f"--json={Path(path).parent}/doctor.json"]
        arguments += [f"save_folder={Path(path).parent}/rank{rank}/{{run_name}}"]
        return load_script("doctor").main(arguments), out.getvalue()


def found(folder: Path) -> dict[str, list[dict[str, Any]]]:
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads((folder / "doctor.json").read_text())["checks"]:
        by_name.setdefault(row["check"], []).append(row)
    return by_name


@pytest.mark.ranks
def test_two_nodes(tmp_path: Path) -> None:
    (code, out), other = run_ranks(diagnose, 2, write_toy_run(tmp_path), 30.0, -1)
    assert (code, other) == (1, (0, ""))
    rows = found(tmp_path)
    assert rows["ranks"][0]["found"] == "all 2 connected"
    ((nodes, both),) = ((row["nodes"], row["found"]) for row in rows["open files"])
    assert len(nodes) == 2
    assert all(name.endswith(f"(rank {number})") for number, name in enumerate(nodes))
    assert "all 2" in out
    # If another cell of the row is long, the table wraps this text, so only its words are compared.
    assert set(both.split()) <= set(out.split())
    (clocks,) = rows["clocks"]
    assert clocks["status"] == "wrong"
    assert 99_000 < float(clocks["found"].split()[2].replace(",", "")) < 101_000
    for name in ("all-reduce (gloo)", "all-to-all (gloo)"):
        (numbers,) = rows[name][0]["nodes"].values()
        assert len(numbers) == 2
        assert min(numbers) > 0
    assert rows["cache_dir: nodes"][0]["found"] == "shared by all nodes"
    assert not list(tmp_path.rglob(".doctor-*"))


@pytest.mark.ranks
def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    (code, _), _ = run_ranks(diagnose, 2, write_toy_run(tmp_path), 2.0, 1)
    assert code == 1
    rows = found(tmp_path)
    assert (rows["ranks"][0]["status"], rows["ranks"][0]["found"]) == ("wrong", "1 of 2 did not connect: 1")
    assert rows["config"][0]["status"] == "ok"
    assert "all-reduce (gloo)" not in rows


@pytest.mark.subprocess
def test_without_torch_there_is_a_table_and_no_traceback(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.modules['torch'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0], None, '__main__')"
    )
    clean = {key: value for key, value in os.environ.items() if not key.endswith(("RANK", "WORLD_SIZE"))}
    env = clean | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(SCRIPTS / "doctor.py"), "--json", str(tmp_path / "doctor.json")]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    rows = found(tmp_path)
    assert (rows["torch"][0]["status"], "torch" in rows["torch"][0]["found"]) == ("wrong", True)
    assert rows["cache_dir: locks"][0]["status"] == "ok"
    assert "wrong" in done.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope.yaml"], "error: nope.yaml does not exist"),
        (["--seconds=0"], "error: --seconds is 0, but it must be above 0"),
        (["--json=/proc/none/x.json"], "error: --json /proc/none/x.json cannot be written"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert load_script("doctor").main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith(message)
    assert err.count("\n") == 1
