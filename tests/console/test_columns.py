"""Step lines under their header."""

import pytest

from train.console.columns import HEADER_EVERY, StepTable, eval_text, lines_interval

METRICS = {
    "loss/train/total": 2.31,
    "loss/train/load_balancing": 0.0113,
    "lr": 1e-6,
    "l2_norm/grad/global": 0.91,
    "throughput/tokens_per_sec": 12_345.0,
    "throughput/flops_per_sec": 4.2e12,
    "memory/peak_gib": 71.4,
    "time/remaining_seconds": 245.0,
}


def test_columns_are_aligned_and_a_small_learning_rate_is_shown() -> None:
    header, line = StepTable(1500, stages=True).lines(100, 204_800, METRICS, "anneal")
    assert line.split() == [
        "100/1500",
        "205k",
        "2.3100",
        "0.0113",
        "1.0e-06",
        "0.910",
        "12.3k",
        "4.20T",
        "71.40",
        "4m05s",
        "anneal",
    ]
    for name, value in zip(header.split()[:-1], line.split()[:-1], strict=True):
        assert header.index(f" {name}") + len(name) == line.index(f" {value}") + len(value)
    assert header.index("stage") == line.index("anneal")


def test_columns_exist_for_logged_and_later_metrics() -> None:
    table = StepTable(10, stages=False)
    header, line = table.lines(1, 512, {"loss/train/total": 3.0})
    assert header.split() == ["step", "tokens", "loss", "tok/s", "FLOP/s", "left"]
    assert line.split() == ["1/10", "512", "3.0000", "-", "-", "-"]
    speed = {"throughput/tokens_per_sec": 1e3, "throughput/flops_per_sec": 1e9, "time/remaining_seconds": 1.0}
    assert len(table.lines(2, 1024, {"loss/train/total": 3.0} | speed)) == 1


def test_a_new_column_repeats_the_header() -> None:
    table = StepTable(10, stages=False)
    table.lines(1, 512, METRICS)
    header, line = table.lines(2, 1024, METRICS | {"throughput/device/mfu": 0.412})
    assert "41.2%" in line
    assert "MFU" in header
    assert "FLOP/s" not in header


def test_the_header_is_repeated() -> None:
    table = StepTable(100, stages=False)
    sizes = [len(table.lines(batch, batch, METRICS)) for batch in range(1, 2 * HEADER_EVERY + 2)]
    assert [number for number, size in enumerate(sizes) if size == 2] == [0, HEADER_EVERY, 2 * HEADER_EVERY]


@pytest.mark.parametrize(("max_batches", "interval"), [(10, 1), (1000, 1), (1001, 2), (4000, 5), (100_000, 100)])
def test_a_run_has_at_most_a_thousand_lines(max_batches: int, interval: int) -> None:
    assert lines_interval(max_batches) == interval


def test_an_evaluation_is_formatted_as_one_text() -> None:
    metrics = {"metrics/eval/LanguageCrossEntropy": 1.25, "metrics/eval/LanguageTokenAccuracy": 0.5, "lr": 1.0}
    assert eval_text(metrics) == "loss 1.2500, accuracy 50.0%"
