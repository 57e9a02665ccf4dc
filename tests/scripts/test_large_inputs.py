"""The benchmark runs at sizes too small for meaningful figures."""

import json

import pytest

from tests.helpers.load_script import load_script


@pytest.mark.slow
def test_large_inputs_measures_the_start_and_the_memory(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--start_gb", "0.03", "--memory_gb", "0.0002", "0.0004", "--vocab_size", "300", "--max_seq_len", "128"]
    file = tmp_path / "large.json"
    assert load_script("bench/large_inputs").main([*flags, "--folder", str(tmp_path), "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report["start"]["slices"] > 4
    assert report["start"]["hash_s"] > 0
    assert [row["bytes"] >= size for row, size in zip(report["memory"], (200_000, 400_000), strict=True)] == [True] * 2
    assert all(row["peak_bytes"]["largest worker"] > 0 for row in report["memory"])
    assert "to compute the slices" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["large.json"]
