"""Categories in handwritten traces, and rejected profiles."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from data.base.errors import ConfigError
from tests.helpers.small_config import load, refusal
from train.config.ranks import check_world_size
from train.throughput.timeline import ATTENTION, BATCH, EXPERTS, table, timeline

MAIN, AUTOGRAD, GPU = 1, 2, 7


def event(name: str, start: float, end: float, tid: int = MAIN, cat: str = "cpu_op", **args: Any) -> dict[str, Any]:
    named = {key.replace("_", " "): value for key, value in args.items()}
    return {"ph": "X", "cat": cat, "name": name, "tid": tid, "ts": start, "dur": end - start, "args": named}


def milliseconds(events: Sequence[dict[str, Any]], end: float = 100) -> dict[str, Any]:
    """Milliseconds of one step by category, without categories that take no time."""
    found = timeline([event("ProfilerStep#3", 0, end, cat="user_annotation"), *events])
    assert sum(found.seconds.values()) == pytest.approx(end / 1e6)
    return {name: pytest.approx(1e6 * seconds) for name, seconds in found.seconds.items() if seconds}


def kernel(name: str, start: float, end: float, correlation: int) -> dict[str, Any]:
    return event(name, start, end, GPU, "kernel", correlation=correlation)


def launch(at: float, correlation: int, tid: int = MAIN) -> dict[str, Any]:
    return event("cudaLaunchKernel", at, at + 0.1, tid, "cuda_runtime", correlation=correlation)


def test_on_a_cpu_the_innermost_operation_counts_and_expert_gemms_belong_to_experts() -> None:
    events = [
        event(EXPERTS, 0, 40, cat="user_annotation"),
        event("aten::mm", 5, 30),
        event("c10d::alltoall_", 30, 38),
        event("aten::mm", 40, 60),
        event("Optimizer.step#AdamW.step", 70, 90, cat="user_annotation"),
        event("aten::_fused_adamw_", 75, 90),
        event("gloo:all_reduce", 55, 65, tid=9),
        event("Optimizer.step#AdamW.step", 90, 99, cat="user_annotation"),
        event(BATCH, 91, 99, cat="user_annotation"),
        event("gloo:all_reduce", 92, 95, tid=9),
    ]
    assert milliseconds(events) == {
        "experts": 32,
        "collectives": 8 + 5 + 3,
        "other GEMMs": 20,
        "optimizer": 21,
        "idle": 11,
    }


def test_on_a_gpu_kernels_have_the_category_of_what_launched_them_and_hide_collectives() -> None:
    events = [
        event(ATTENTION, 0, 10, cat="user_annotation"),
        launch(1, 11),
        event("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 60, 95, cat="user_annotation"),
        kernel("flash_fwd", 20, 50, 11),
        kernel("ncclDevKernel_AllGather", 40, 70, 12),
    ]
    assert milliseconds(events) == {"attention": 30, "collectives": 20, "data": 25, "idle": 25}


def test_gradients_belong_to_the_module_and_recomputation_does_not() -> None:
    backward = "autograd::engine::evaluate_function: MmBackward0"
    events = [
        event("Optimizer.step#AdamW.step", 0, 90, cat="user_annotation"),
        event(BATCH, 0, 80, cat="user_annotation"),
        event(EXPERTS, 0, 10, cat="user_annotation"),
        event("aten::mm", 2, 8, Sequence_number=5, Fwd_thread_id=0),
        event(backward, 20, 60, AUTOGRAD, Sequence_number=5, Fwd_thread_id=1),
        event("aten::rms_norm", 22, 28, AUTOGRAD, Sequence_number=0, Fwd_thread_id=0),
        event("aten::mm", 40, 50, AUTOGRAD),
        launch(23, 31, AUTOGRAD),
        launch(41, 32, AUTOGRAD),
        launch(85, 33),
        kernel("norm", 30, 40, 31),
        kernel("gemm", 50, 70, 32),
        kernel("adamw", 90, 95, 33),
    ]
    assert milliseconds(events) == {"other operations": 10, "experts": 20, "optimizer": 5, "idle": 65}


def test_the_table_has_means_of_the_steps() -> None:
    steps = [event(f"ProfilerStep#{n}", 1000 * n, 1000 * (n + 1), cat="user_annotation") for n in (3, 4)]
    lines = table(timeline([*steps, event("aten::mm", 3000, 4000)]), "profile").splitlines()
    assert lines[0] == "profile: 1.0 ms per step"
    assert [line.split() for line in lines if "GEMMs" in line] == [["other", "GEMMs", "0.50", "50.0%"]]


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (
            "{step: 9}",
            "profile.step is 9, and with profile.steps: 3 the last profiled step is 11, but the run has ",
        ),
        ("{step: 0}", "profile.step is 0"),
        ("{step: 2, ranks: []}", "profile.ranks is []"),
        ("{steps: 2}", "missing: profile.step"),
    ],
)
def test_an_impossible_profile_is_rejected(tmp_path: Path, profile: str, message: str) -> None:
    assert message in refusal(tmp_path, f"profile={profile}")


def test_a_profile_of_a_nonexistent_rank_is_rejected(tmp_path: Path) -> None:
    config = load(tmp_path, "profile={step: 8, ranks: [0, 2]}")
    with pytest.raises(ConfigError, match=r"profile.ranks contains 2, but the ranks of this run are 0 to 1"):
        check_world_size(config, 2)
