"""The benches run at sizes too small for meaningful figures."""

import json
from pathlib import Path

import pytest

from scripts.bench import common
from tests.helpers.load_script import load_script

_SIZES = {"n_layers": 1, "d_model": 32, "n_heads": 4, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2}
STEP = [f"--{name}={value}" for name, value in (_SIZES | {"vocab_size": 64, "rows": 2, "max_seq_len": 32}).items()]
STEP.append("--rounds=2")
"""Flags for benches that measure callbacks in a training step."""


@pytest.mark.slow
def test_bench_step_measures_every_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"n_layers": 2, "d_model": 32, "n_heads": 4, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2}
    sizes |= {"vocab_size": 64, "rows": 2, "max_seq_len": 32, "rounds": 3}
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    assert load_script("bench/step").main([*flags, "--json", str(tmp_path / "step.json")]) == 0
    sides = json.loads((tmp_path / "step.json").read_text())["sides"]
    assert {"dropless", "transformers", "dense, equal active FLOPs"} < sides.keys()
    assert all(len(side["seconds"]) == 3 for side in sides.values())
    assert "x transformers" in capsys.readouterr().out


def test_bench_memory_measures_every_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"n_layers": 2, "d_model": 64, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "rounds": 1}
    sizes |= {"rows": 2, "max_seq_len": 64, "loss_tokens": 4096, "loss_vocab": 2000, "loss_d_model": 8}
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    assert load_script("bench/memory").main([*flags, "--json", str(tmp_path / "memory.json")]) == 0
    result = json.loads((tmp_path / "memory.json").read_text())
    kept = [result["policies"][policy]["kept_bytes"] for policy in ("none", "selective", "block")]
    assert kept == sorted(kept, reverse=True)
    assert result["loss_peak_bytes"]["chunked"] < result["loss_peak_bytes"]["plain"]
    assert "kept MiB" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_bench_lora_measures_every_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"n_layers": 1, "d_model": 64, "n_heads": 4, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2}
    sizes |= {"vocab_size": 64, "rows": 2, "max_seq_len": 32, "r": 2, "first_steps": 1, "rounds": 1}
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    assert load_script("bench/lora").main([*flags, "--json", str(tmp_path / "lora.json")]) == 0
    sides = json.loads((tmp_path / "lora.json").read_text())["sides"]
    states = [sides[name]["state_bytes"] for name in ("full", "  fp32 base", "attention and experts", "  nf4 base")]
    assert states == sorted(states, reverse=True)
    assert all(len(side["seconds"]) == 1 for side in sides.values())
    assert "loss with the 4-bit base minus loss with the bf16 base" in capsys.readouterr().out


def test_bench_mixture_measures_planning_and_loading(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--rows=1000", "--streams", "2", "3", "--batch=16", "--rounds=2", "--load_rows=40", "--load_batch=4"]
    file = tmp_path / "mixture.json"
    assert load_script("bench/mixture").main([*flags, "--max_seq_len=32", "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert [(row["rows"], row["streams"], len(row["warm_ms"])) for row in report["planning"]] == [
        (1000, 2, 6),
        (1000, 3, 6),
    ]
    assert {name: len(rates) for name, rates in report["loading"].items()} == {"1": 2, "10": 2}
    assert report["settings"]["batch"] == 16
    assert "of one" in capsys.readouterr().out


def test_bench_async_save_measures_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "save.json"
    sizes = ["--megabytes", "4", "--rounds=2", "--d_model=64", "--n_layers=1", "--max_seq_len=8"]
    assert load_script("bench/async_save").main([*sizes, "--json", str(file)]) == 0
    sides = json.loads(file.read_text())["sizes"]["4"]
    assert {side: len(rounds) for side, rounds in sides.items()} == {"background": 2, "waiting": 2, "bare write": 2}
    assert all(each["inside"] == [] for each in sides["waiting"])
    assert "x the time of a step before the save" in capsys.readouterr().out


def test_sides_take_turns_in_running_first() -> None:
    assert list(common.rounds("abc", 4)) == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_ratios_are_taken_within_a_round() -> None:
    assert common.ratio([1, 20, 3], [1, 10, 1]) == 2  # the ratio of the medians would be 3
    times = {"GEMMs, a": [2.0, 5.0], "GEMMs, b": [3.0, 4.0], "ours": [1.0, 1.0]}
    assert common.floors_of(times, {"best": "GEMMs", "a": "GEMMs, a"}) == {"best": [2, 4], "a": [2, 5]}


def test_tables_align_their_columns(capsys: pytest.CaptureFixture[str]) -> None:
    common.show_table([{"side": "a", "s": common.median([1, 2, 9])}, {"side": "longer", "s": common.spread([10, 2])}])
    assert capsys.readouterr().out.splitlines() == [
        "side             s",
        "a             2.00",
        "longer  2.00-10.00",
    ]


@pytest.mark.subprocess
def test_bench_step_check_measures_every_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_script("bench/step_check").main([*STEP, "--json", str(tmp_path / "check.json")]) == 0
    report = json.loads((tmp_path / "check.json").read_text())
    assert [len(side["seconds"]) for side in report["sides"].values()] == [2, 2, 2]
    assert 0 < report["inside"] < 1
    assert "inside the check" in capsys.readouterr().out


@pytest.mark.subprocess
def test_bench_expert_health_weighs_the_steps_that_are_measured(tmp_path: Path) -> None:
    assert load_script("bench/expert_health").main([*STEP, "--json", str(tmp_path / "health.json")]) == 0
    report = json.loads((tmp_path / "health.json").read_text())
    assert list(report["inside"]) == ["between measurements", "measured"]
    assert 0 < report["inside"]["between measurements"] < report["inside"]["measured"] < 1
    assert report["default"]["inside"] < report["inside"]["measured"]


@pytest.mark.subprocess
def test_bench_throughput_measures_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_script("bench/throughput").main([*STEP, "--json", str(tmp_path / "throughput.json")]) == 0
    report = json.loads((tmp_path / "throughput.json").read_text())
    assert {side: len(seconds) for side, seconds in report["seconds"].items()} == {"without": 2, "with": 2}
    assert 0 < report["inside"] < 1
    assert "`with` / `without`" in capsys.readouterr().out


@pytest.mark.proof
@pytest.mark.subprocess
def test_bench_near_duplicates_measures_time_and_recall(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--documents=100", "--pairs=40", "--sizes", "1", "2", "--rounds=1", f"--json={tmp_path / 'near.json'}"]
    assert load_script("bench/near_duplicates").main(flags) == 0
    report = json.loads((tmp_path / "near.json").read_text())
    assert [row["documents"] for row in report["sizes"] if row["variant"] == "near_duplicates"] == [100, 200]
    assert all(0 < row["kept"] < row["documents"] for row in report["sizes"])
    assert all(row["compared"] <= row["pairs"] for row in report["bins"])
    assert report["bins"][-1]["compared"] == report["bins"][-1]["pairs"] > 0
    assert "of near_duplicates" in capsys.readouterr().out


def test_jaccard_similarities_of_all_pairs() -> None:
    texts = ["a b c d", "a b c", "x y", "b c"]
    a, b, similarity = load_script("bench/near_duplicates").jaccard_of_all(texts, 2)
    found = {(int(i), int(j)): float(value) for i, j, value in zip(a, b, similarity, strict=True)}
    assert found == {(0, 1): 2 / 3, (0, 3): 1 / 3, (1, 3): 1 / 2}
