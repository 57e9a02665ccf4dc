"""The scripts related to exports run at sizes too small for meaningful figures."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.load_script import load_script
from tests.helpers.verify_here import verify_here
from train.models.precision import PRECISIONS


@pytest.mark.subprocess
@pytest.mark.slow
def test_bench_export_measures_both_precisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("bench/export")
    fresh = script.in_fresh_process

    def once_in_a_fresh_process(side: str, source: Path, output: Path, precision: str) -> list[float]:
        """Run each side once in its own process, which takes seconds to import torch, and then in this process."""
        if precision == "bf16" and output.name == "other":
            return fresh(side, source, output, precision)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["-c", side, str(source), str(output), precision])
            capsys.readouterr()
            exec(script._VARIANT, {})
        return [float(word) for word in capsys.readouterr().out.split()[-3:]]

    monkeypatch.setattr(script, "in_fresh_process", once_in_a_fresh_process)
    flags = ["--gigabytes=0.01", "--d_model=128", "--rounds=1", f"--folder={tmp_path}"]
    assert script.main([*flags, "--json", str(tmp_path / "export.json")]) == 0
    report = json.loads((tmp_path / "export.json").read_text())
    # Besides the weights, a folder contains the tokenizer and other small files.
    assert report["bytes"] < report["precisions"]["fp32"]["bytes"] < report["bytes"] + 100_000
    assert report["bytes"] / 2 < report["precisions"]["bf16"]["bytes"] < report["bytes"] / 2 + 100_000
    assert all(len(found["copy"]) == len(found["export"]) == 1 for found in report["precisions"].values())
    assert "x copying" in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == ["export.json"]


@pytest.mark.slow
@pytest.mark.subprocess
def test_verify_exports_checks_every_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("dev/verify_exports")
    monkeypatch.setattr(script, "environment", lambda number, folder: Path(sys.executable))
    run = subprocess.run

    def verify_once_in_a_fresh_process(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        return (run if "run-fp32" in command[-1] else verify_here)(command, **kwargs)

    monkeypatch.setattr(script.subprocess, "run", verify_once_in_a_fresh_process)
    assert script.main(["--versions", "4.57", "--folder", str(tmp_path / "verify")]) == 0
    out = capsys.readouterr().out
    assert out.count("verified: the whole model: largest relative difference") == len(PRECISIONS)
    assert out.endswith("all exports are correct\n")
    failed = subprocess.CompletedProcess([], 2, "", "error: config.json is not JSON\n")
    monkeypatch.setattr(script.subprocess, "run", lambda *args, **kwargs: failed)
    assert not script.check("4.57", tmp_path / "verify")
    assert "config.json is not JSON" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "n_bytes"), [("5GB", 5 << 30), ("1.5 MiB", 3 << 19), ("300", 300), ("2kb", 2048)])
def test_sizes_have_the_usual_format(text: str, n_bytes: int) -> None:
    assert load_script("convert_checkpoint_to_hf")._size(text) == n_bytes


def test_invalid_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_script("convert_checkpoint_to_hf").main(
            ["--composer_path=a", "--hf_output_path=b", "--max_shard_size=5XB"]
        )
    assert "--max_shard_size: is '5XB', but it must be a positive number of bytes" in capsys.readouterr().err
