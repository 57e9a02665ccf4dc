"""The benches run, at sizes at which their figures mean nothing."""

import json
from pathlib import Path

import pytest

from tests.helpers.scripts import load


def test_bench_step_measures_every_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"n_layers": 2, "d_model": 32, "n_heads": 4, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2}
    sizes |= {"vocab_size": 64, "rows": 2, "max_seq_len": 32, "rounds": 3}
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    assert load("bench_step").main([*flags, "--json", str(tmp_path / "step.json")]) == 0
    sides = json.loads((tmp_path / "step.json").read_text())["sides"]
    assert {"dropless", "transformers", "dense, equal active FLOPs"} < sides.keys()
    assert all(len(side["seconds"]) == 3 for side in sides.values())
    assert "x transformers" in capsys.readouterr().out


def test_bench_memory_measures_every_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"n_layers": 2, "d_model": 64, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2, "rounds": 1}
    sizes |= {"rows": 2, "max_seq_len": 64, "loss_tokens": 4096, "loss_vocab": 2000, "loss_d_model": 8}
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    assert load("bench_memory").main([*flags, "--json", str(tmp_path / "memory.json")]) == 0
    result = json.loads((tmp_path / "memory.json").read_text())
    kept = [result["policies"][policy]["kept_bytes"] for policy in ("none", "selective", "block")]
    assert kept == sorted(kept, reverse=True)
    assert result["loss_peak_bytes"]["chunked"] < result["loss_peak_bytes"]["plain"]
    assert "kept MiB" in capsys.readouterr().out


@pytest.mark.timeout(120)
def test_bench_lora_measures_every_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"n_layers": 1, "d_model": 64, "n_heads": 4, "ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2}
    sizes |= {"vocab_size": 64, "rows": 2, "max_seq_len": 32, "r": 2, "first_steps": 1, "rounds": 1}
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    assert load("bench_lora").main([*flags, "--json", str(tmp_path / "lora.json")]) == 0
    sides = json.loads((tmp_path / "lora.json").read_text())["sides"]
    states = [sides[name]["state_bytes"] for name in ("full", "  fp32 base", "attention and experts", "  nf4 base")]
    assert states == sorted(states, reverse=True)
    assert all(len(side["seconds"]) == 1 for side in sides.values())
    assert "loss above the 4-bit base less that above bf16" in capsys.readouterr().out
