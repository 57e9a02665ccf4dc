"""Peak FLOPs of GPUs, and metrics with the names of Composer's callbacks."""

import pytest

from train.config.callbacks import CallbacksConfig, RuntimeEstimatorConfig, SpeedMonitorConfig
from train.planning.cluster.gpus import GPUS, known_gpu
from train.throughput.composer_names import composer_metrics


@pytest.mark.parametrize(
    ("cuda_name", "key"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100_40"),
        ("NVIDIA H20", None),
        ("NVIDIA H100 PCIe", None),
    ],
)
def test_only_known_gpus_have_peak_flops(cuda_name: str, key: str | None) -> None:
    assert known_gpu(cuda_name) == (GPUS[key] if key is not None else None)


def test_the_peak_is_that_of_the_precision() -> None:
    assert [GPUS["h200"].peak_flops(name) for name in ("amp_bf16", "fp32")] == [989e12, 67e12]


def test_metrics_with_composers_names_have_composers_units() -> None:
    metrics = {f"seconds/{name}": 3600.0 for name in ("train", "data", "eval")}
    metrics |= {"throughput/batches_per_sec": 0.5, "time/remaining_seconds": 7200.0}
    speed, left = SpeedMonitorConfig(), RuntimeEstimatorConfig()
    both = CallbacksConfig(speed_monitor=speed, runtime_estimator=left)
    assert composer_metrics(both, metrics, rows_per_batch=8, devices=2) == {
        "time/train": 2,
        "time/val": 1,
        "time/total": 3,
        "throughput/samples_per_sec": 4,
        "throughput/device/samples_per_sec": 2,
        "throughput/device/batches_per_sec": 0.25,
        "time/remaining_estimate": 2,
    }
    assert composer_metrics(CallbacksConfig(), metrics, rows_per_batch=8, devices=2) == {}
