"""The benchmark runs at sizes too small for meaningful figures."""

import json

import pytest

from tests.helpers.load_script import load_script


@pytest.mark.proof
def test_large_inputs_measures_the_start_and_the_memory(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--start_gb", "0.03", "--memory_gb", "0.0002", "--vocab_file", "quickstart/vocab.tiktoken"]
    file = tmp_path / "large.json"
    assert load_script("bench/large_inputs").main([*flags, "--folder", str(tmp_path), "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report["start"]["slices"] > 4
    assert report["start"]["hash_s"] > 0
    (row,) = report["memory"]
    assert row["bytes"] >= 200_000
    assert row["peak_bytes"]["largest worker"] > 0
    assert "to compute the slices" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["large.json"]
