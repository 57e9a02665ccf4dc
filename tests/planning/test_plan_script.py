"""scripts/plan.py: the errors it reports, what it prints, and that it does not import torch."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.load_script import load_script
from tests.helpers.small_config import LEAST

ROOT = Path(__file__).parents[2]
ROWS = ("device_train_microbatch_size=4",)
DBRX = str(ROOT / "yamls" / "finetune" / "dbrx.yaml")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(LEAST)
    return "small.yaml"


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = load_script("plan").main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--nodes", "0"], "--nodes is 0"),
        (["--gpu", "h10"], "did you mean h100?"),
        (["--search"], "--search needs --gpu"),
        (["--gpus", "3"], "global_train_batch_size is 8, but it must be divisible by the number of ranks (3)"),
        (["fsdp_config.expert_parallel_degree=3"], "must divide model.ffn_config.moe_num_experts (16)"),
        (["fsdp_config.expert_parallel_degree=2"], "must divide the number of ranks over which"),
        (["optimizer.freeze=['*.nothing']"], "matches no parameter"),
        (["autoresume=true", "save_folder=x/{run_name}"], "a later start could not find this run"),
        (["model.pretrained_model_name_or_path=./none"], "model.pretrained_model_name_or_path"),
        (["model={ffn_config: {moe_impl: megablocks}}", "max_seq_len=32768", *ROWS], "below 2**31"),
    ],
)
def test_a_plan_rejects_what_a_run_rejects(
    small: str, capsys: pytest.CaptureFixture[str], arguments: list[str], error: str
) -> None:
    code, _, printed = plan(capsys, small, *arguments)
    assert code == 2
    assert printed.startswith("error: ")
    assert error in printed


def test_less_memory_than_the_bound_is_refused_with_a_fix(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = plan(capsys, DBRX, "--gpu", "rtx5090")
    assert code == 2
    assert re.fullmatch(
        r"error: the run does not fit: each rank needs at least .*, but RTX 5090 32 GB has 31.84gb\n", err
    )
    assert "the run fits neither with other settings, nor on" in out


def test_a_plan_shows_all_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = plan(capsys, DBRX, "--nodes", "8", "--gpu", "h100", "max_duration=1000ba", "save_interval=100ba")
    assert (code, err) == (0, "")
    for text in (
        "131,596,523,520",
        "memory of each of 64 rank(s)",
        "reduce-scatter",
        "bound by",
        "nothing here is measured",
        "the run, 1,000 steps",
        "GPU-hours",
        "assumed, not measured",
        "checkpoints: 980.56gb each",
        "export as a Hugging Face folder: 490.24gb in fp32, 245.12gb in bf16",
    ):
        assert text in out


@pytest.mark.subprocess
def test_a_plan_with_a_search_imports_no_torch() -> None:
    code = (
        "import json, runpy, sys; sys.argv[1:] = sys.argv[2:]\n"
        "try: runpy.run_path('scripts/plan.py', run_name='__main__')\n"
        "except SystemExit as ended: assert not ended.code\n"
        "print(json.dumps([name for name in ('torch', 'composer', 'transformers', 'numpy') if name in sys.modules]))"
    )
    command = [sys.executable, "-c", code, "plan.py", DBRX, "--nodes", "8", "--gpu", "h100", "--search"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    *out, last = done.stdout.splitlines()
    assert "the fastest settings that fit" in "\n".join(out)
    assert json.loads(last) == []
