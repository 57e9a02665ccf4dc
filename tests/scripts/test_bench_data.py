"""The benchmark runs at sizes too small for meaningful figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.load_script import load_script
from tests.helpers.missing import skip_or_fail

FLAGS = ["--rounds", "2", "--max_seq_len", "128", "--workers", "2", "--vocab_size", "400"]
ENCODERS = {
    f"{what}, {encoder}" for what in ("prepare, 1 worker", "prepare, 2 workers") for encoder in ("tiktoken", "quicktok")
}
STOCK, SPARK = "stock: datasets.map + MDSWriter", "Spark local[2]: dataframe_to_mds"
SIDES = {"tiktoken alone", "quicktok alone", *ENCODERS, STOCK}


def measured(script: Any, folder: Path, *flags: str) -> dict[str, Any]:
    file = folder / "data.json"
    assert script.main([*FLAGS, *flags, "--folder", str(folder), "--json", str(file)]) == 0
    assert [path.name for path in folder.iterdir()] == ["data.json"]
    return json.loads(file.read_text())


@pytest.mark.slow
def test_bench_data_measures_every_side(tmp_path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("bench/bench_data")
    monkeypatch.setattr(script, "why_not", lambda: "no Java")
    report = measured(script, tmp_path, "--megabytes", "0.3", "--rows", "60")
    sides = report["prepare"]["sides"]
    assert sides.keys() == SIDES
    assert all(len(side["seconds"]) == len(side["cpu_seconds"]) == 2 for side in sides.values())
    assert 60_000 < report["prepare"]["tokens"] < 1_000_000
    assert 0.9 < report["prepare"]["filled"] <= 1
    assert len(report["load"]["tokens_per_s"]) == 2
    assert list(report["resume"]["first_batch_s"]) == ["10"]
    shown = capsys.readouterr().out
    assert "of tiktoken alone" in shown
    assert [line.split()[-4:] for line in shown.splitlines() if line.startswith(SPARK)] == [
        ["not", "run:", "no", "Java"]
    ]


@pytest.mark.proof
def test_bench_data_measures_spark(tmp_path) -> None:
    script = load_script("bench/bench_data")
    if (reason := script.why_not()) is not None:
        skip_or_fail(reason)
    sides = measured(script, tmp_path, "--megabytes", "0.3", "--rows", "0")["prepare"]["sides"]
    assert sides.keys() == {*SIDES, SPARK}
    assert all(side["x Spark"] > 0 for side in sides.values())
