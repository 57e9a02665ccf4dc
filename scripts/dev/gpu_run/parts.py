"""The parts of a GPU run, in order of importance."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Found:
    """The result of a part."""

    tables: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """Tables by title. A row is a mapping from column to cell."""
    notes: list[str] = field(default_factory=list)
    figures: Any = None
    """All measured values, which are written only to the JSON file."""
    failure: str = ""
    """The reason why the part failed; empty if the part passed."""


class Part(NamedTuple):
    name: str
    what: str
    limit_s: int
    run: Callable[[bool], Found]
    """The function that runs the part. Its argument is True for tiny sizes on the CPU."""
    needs: tuple[str, ...] = ()
    """Required packages, in addition to torch and transformers."""
    tiny: bool = True
    """Whether a tiny run includes the part."""


def environment(tiny: bool) -> Found:
    from scripts.dev.gpu_run.environment import environment as look

    facts, failure = look(_device(tiny))
    return Found({"Environment": [{"": name, "value": value} for name, value in facts.items()]}, failure=failure)


def model_tests(tiny: bool) -> Found:
    """Run the tests of tests/models that use a GPU if there is one."""
    import pytest

    class Counts:
        def __init__(self) -> None:
            self.of: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.when == "call" or report.outcome != "passed":
                self.of[report.outcome].append(report.nodeid)

    chosen = "sdpa and cpu and float32" if tiny else "cuda or gpu"
    files = ["test_attention"] if tiny else ["test_experts", "test_attention", "test_parity", "test_loss"]
    files += [] if tiny else ["test_kv_cache", "test_checkpointing", "test_model"]
    paths = [str(ROOT / "tests" / "models" / f"{name}.py") for name in files]
    counts = Counts()
    code = pytest.main(["-q", "-p", "no:cacheprovider", "--tb=short", "-k", chosen, *paths], plugins=[counts])
    rows = [{"tests": outcome, "number": str(len(names))} for outcome, names in counts.of.items()]
    notes = [f"failed: {name}" for name in counts.of["failed"][:20]]
    return Found({"Model tests": rows}, notes, counts.of, f"pytest ended with exit code {int(code)}" if code else "")


def parity(tiny: bool) -> Found:
    from scripts.dev.gpu_run.parity import compare

    rows, notes = compare(_device(tiny), tiny=tiny)
    over = [f"{row['what']} {row['impl']} {row['dtype']}" for row in rows if row["within"] != "yes"]
    title = "Largest difference from fp32, relative to the largest value of the tensor"
    return Found({title: rows}, notes, failure=f"differences above the bound: {', '.join(over)}" if over else "")


def moe(tiny: bool) -> Found:
    from scripts.bench import moe

    sizes = {"tokens": 32, "d_model": 16, "ffn_hidden_size": 8, "rounds": 7, "warmup": 0}
    report = _bench(moe.main, sizes if tiny else {"rounds": 7, "warmup": 2}, device=_device(tiny).type)
    rows = [moe.cells(name, row) for name, row in report["sides"].items()]
    return Found({"An MoE layer, forward and backward": rows}, report["notes"], report)


def step(tiny: bool) -> Found:
    from scripts.bench import model_step

    sizes = {"d_model": 32, "n_heads": 4, "kv_n_heads": 2, "ffn_hidden_size": 16, "vocab_size": 64, "max_seq_len": 32}
    tiny_flags = sizes | {"rounds": 2, "warmup": 0, "dtype": "float32"}
    report = _bench(model_step.main, tiny_flags if tiny else {}, device=_device(tiny).type)
    rows = [model_step.cells(name, row) for name, row in report["sides"].items()]
    return Found({"A training step without Composer": rows}, report["notes"], report)


def memory(tiny: bool) -> Found:
    from scripts.dev.gpu_run.memory import against_plan

    rows, figures, notes = against_plan(_device(tiny), tiny=tiny)
    return Found({"Measured and planned memory of a step, GB": rows}, notes, figures)


def composer_step(tiny: bool) -> Found:
    from scripts.bench import step

    sizes = {"n_layers": 1, "d_model": 32, "n_heads": 4, "ffn_hidden_size": 16, "vocab_size": 64, "max_seq_len": 32}
    large = {"n_layers": 2, "d_model": 2048, "n_heads": 16, "kv_n_heads": 8, "ffn_hidden_size": 3584}
    large |= {"vocab_size": 32768, "rows": 2, "max_seq_len": 4096, "precision": "amp_bf16"}
    report = _bench(step.main, sizes if tiny else large, device="cpu" if tiny else "gpu")
    rows = [step.cells(name, row) for name, row in report["sides"].items()]
    return Found({"A training step under Composer": rows}, figures=report)


def lora_step(tiny: bool) -> Found:
    from scripts.bench import lora

    sizes = {"n_layers": 1, "d_model": 64, "n_heads": 4, "ffn_hidden_size": 16, "vocab_size": 64, "max_seq_len": 32}
    large = {"d_model": 1024, "n_heads": 8, "ffn_hidden_size": 1792, "max_seq_len": 2048, "precision": "amp_bf16"}
    flags = (sizes | {"first_steps": 1, "rounds": 1}) if tiny else large
    report = _bench(lora.main, flags, device=_device(tiny).type)
    rows = [lora.cells(name, row, report["sides"][lora.FULL]) for name, row in report["sides"].items()]
    return Found({"A training step with adapters, including a 4-bit base model": rows}, figures=report)


PARTS = (
    Part("environment", "versions, compiler, Triton's first launch", 40, environment),
    Part("tests", "the model tests that use a GPU", 150, model_tests, needs=("pytest",)),
    Part("parity", "each moe_impl and attn_impl in bf16 and fp32", 90, parity),
    Part("moe", "an MoE layer of DBRX's width", 110, moe),
    Part("step", "a training step at DBRX's width", 110, step),
    Part("memory", "the measured and the planned memory of a step", 90, memory),
    Part("composer", "a training step under Composer", 70, composer_step, needs=("composer", "omegaconf"), tiny=False),
    Part("lora", "a step with adapters on a 4-bit base model", 60, lora_step, needs=("bitsandbytes",), tiny=False),
)
"""The time limits add up to 12 minutes."""


def _device(tiny: bool) -> torch.device:
    return torch.device("cpu" if tiny else "cuda")


def _bench(main: Callable[[Sequence[str]], int], flags: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Run a benchmark of scripts/bench with these flags and return its report."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.json"
        given = [f"--{name}={value}" for name, value in (flags | more).items()]
        if code := main([*given, f"--json={file}"]):
            raise RuntimeError(f"the benchmark ended with exit code {code}")
        return json.loads(file.read_text(encoding="utf-8"))
