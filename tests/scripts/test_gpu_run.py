"""scripts/dev/gpu_run.sh on the CPU at tiny sizes, and its record of parts that fail, hang or cannot run."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.dev.gpu_run import parts, run
from scripts.dev.gpu_run.parts import PARTS, Found, Part
from scripts.dev.gpu_run.report import markdown

ROOT = Path(__file__).parents[2]
OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def test_the_limits_sum_to_12_minutes_and_parts_with_requirements_are_last() -> None:
    assert sum(part.limit_s for part in PARTS) <= 12 * 60
    needs_more = [bool(set(part.needs) - {"pytest"}) for part in PARTS]
    assert needs_more == sorted(needs_more)


@pytest.mark.slow
@pytest.mark.subprocess
def test_it_runs_on_the_cpu_at_tiny_sizes(tmp_path: Path) -> None:
    # test_experts.py covers `moe`.
    names = ["environment", "parity", "step", "memory"]
    env = {name: value for name, value in os.environ.items() if name not in OF_RANKS and "SLURM" not in name}
    env |= {"PYTHON": sys.executable, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "scripts/dev/gpu_run.sh"), "--tiny", "--parts", *names]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "gpu_run.log").read_text()
    results = {each["part"]: each for each in json.loads((tmp_path / "gpu_run.json").read_text())}
    assert {name: each["result"] for name, each in results.items()} == dict.fromkeys(names, "ok")
    compared = next(iter(results["parity"]["tables"].values()))
    assert {("experts", "torch", "float32"), ("attention", "sdpa", "bfloat16")} <= {
        (row["what"], row["impl"], row["dtype"]) for row in compared
    }
    losses = [side["loss"] for side in results["step"]["figures"]["sides"].values() if side["loss"] is not None]
    assert len(losses) >= 2
    assert max(losses) - min(losses) < 1e-4
    assert all(of["allocated"] > of["lower bound"] > 0 for of in results["memory"]["figures"].values())
    report = (tmp_path / "gpu_run.md").read_text()
    assert "## A training step without Composer" in report
    assert "| transformers |" in report


def fails(tiny: bool) -> Found:
    raise ValueError("this is broken")


def hangs(tiny: bool) -> Found:
    time.sleep(60)
    return Found()


def dies(tiny: bool) -> Found:
    os._exit(7)


def finds(tiny: bool) -> Found:
    return Found({"Of tests": [{"a": "1 | 2"}]}, notes=["a note"])


def test_a_part_that_fails_or_hangs_is_recorded_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [
        Part(function.__name__, "", 5 if function is not hangs else 1, function)
        for function in (fails, hangs, dies, finds)
    ]
    made.insert(1, Part("missing", "", 5, finds, needs=("no_such_package",)))
    monkeypatch.setattr(run, "PARTS", tuple(made))
    monkeypatch.setattr(run, "preload", lambda: None)
    assert run.main(["--tiny", "--out", str(tmp_path)]) == 1
    results = {each["part"]: each["result"] for each in json.loads((tmp_path / "gpu_run.json").read_text())}
    assert results == {
        "fails": "failed: ValueError: this is broken",
        "missing": "not run: no_such_package not installed",
        "hangs": "failed: timed out after 1 s",
        "dies": "failed: ended with exit code 7, see gpu_run.log",
        "finds": "ok",
    }
    assert "this is broken" in (tmp_path / "gpu_run.log").read_text()
    report = (tmp_path / "gpu_run.md").read_text()
    assert "| finds |  | 0 | ok |" in report
    assert "## Of tests\n\n| a |\n| --- |\n| 1 \\| 2 |\n\n- finds: a note" in report


def test_without_a_gpu_it_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(run, "why_no_gpu", lambda: "this machine has no GPU")
    assert run.main([]) == 2
    assert "error: this machine has no GPU; --tiny runs the parts on the CPU" in capsys.readouterr().err


def test_a_difference_over_its_bound_fails_the_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts.dev.gpu_run import parity

    monkeypatch.setattr(parity, "BOUNDS", {parts.torch.float32: 1e-12})
    assert "experts torch float32" in parts.parity(tiny=True).failure


def test_an_empty_table_is_marked() -> None:
    part = {"part": "p", "what": "w", "seconds": 1.0, "result": "ok", "tables": {"Nothing": []}}
    assert markdown([part]).endswith("## Nothing\n\n(nothing)\n")
