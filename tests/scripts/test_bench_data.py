"""The benchmark runs at sizes too small for meaningful figures."""

import json

import pytest

from tests.helpers.load_script import load_script


@pytest.mark.slow
def test_bench_data_measures_every_side(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--megabytes", "0.3", "--rounds", "2", "--max_seq_len", "128", "--workers", "2", "--rows", "60"]
    flags += ["--vocab_size", "400"]
    file = tmp_path / "data.json"
    assert load_script("bench/data_plane").main([*flags, "--folder", str(tmp_path), "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    sides = report["prepare"]["sides"]
    assert sides.keys() == {
        "tiktoken alone",
        "prepare, 1 worker",
        "prepare, 2 workers",
        "stock: datasets.map + MDSWriter",
    }
    assert all(len(side["seconds"]) == len(side["cpu_seconds"]) == 2 for side in sides.values())
    assert 60_000 < report["prepare"]["tokens"] < 1_000_000
    assert len(report["load"]["tokens_per_s"]) == 2
    assert list(report["resume"]["first_batch_s"]) == ["10"]
    assert "of tiktoken alone" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]
