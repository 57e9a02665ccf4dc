"""The scripts around the export run, at sizes at which their figures mean nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.load_script import load_script
from train.hf.tensors import DTYPES


def test_bench_export_measures_both_precisions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--gigabytes=0.01", "--d_model=128", "--rounds=1", f"--folder={tmp_path}"]
    assert load_script("bench/export").main([*flags, "--json", str(tmp_path / "export.json")]) == 0
    report = json.loads((tmp_path / "export.json").read_text())
    # Beside the weights a folder holds the tokenizer and the like.
    assert report["bytes"] < report["precisions"]["fp32"]["bytes"] < report["bytes"] + 100_000
    assert report["bytes"] / 2 < report["precisions"]["bf16"]["bytes"] < report["bytes"] / 2 + 100_000
    assert all(len(found["copy"]) == len(found["export"]) == 1 for found in report["precisions"].values())
    assert "x copying" in capsys.readouterr().out
    assert [entry.name for entry in tmp_path.iterdir()] == ["export.json"]


def test_verify_exports_checks_every_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = load_script("dev/verify_exports")
    monkeypatch.setattr(script, "environment", lambda number, folder: Path(sys.executable))
    assert script.main(["--versions", "4.57", "--folder", str(tmp_path / "verify")]) == 0
    said = capsys.readouterr().out
    assert said.count("verified: the whole model at once") == len(DTYPES)
    assert said.endswith("every one is right\n")
    wrong = subprocess.CompletedProcess([], 2, "", "error: config.json is not JSON\n")
    monkeypatch.setattr(script.subprocess, "run", lambda *args, **kwargs: wrong)
    assert not script.check("4.57", tmp_path / "verify")
    assert "config.json is not JSON" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "n_bytes"), [("5GB", 5 * 10**9), ("1.5 MiB", 3 << 19), ("300", 300), ("2kb", 2000)])
def test_sizes_are_read_as_transformers_reads_them(text: str, n_bytes: int) -> None:
    assert load_script("convert_checkpoint_to_hf").size(text) == n_bytes


def test_what_is_no_size(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_script("convert_checkpoint_to_hf").main(
            ["--composer_path=a", "--hf_output_path=b", "--max_shard_size=5TB"]
        )
    assert "'5TB' is not a size such as 5GB or 500MB" in capsys.readouterr().err
