"""The metrics of Composer's SpeedMonitor and RuntimeEstimator that Throughput logs under other names or in other
units."""

from collections.abc import Mapping

from train.config.callbacks import CallbacksConfig

_HOUR = 3600


def composer_metrics(
    config: CallbacksConfig, metrics: Mapping[str, float], *, rows_per_batch: int, devices: int
) -> dict[str, float]:
    """Return the metrics of SpeedMonitor and of RuntimeEstimator, for each of these callbacks that the config contains.
    metrics: the metrics of Throughput at the end of a step."""
    found: dict[str, float] = {}
    if config.speed_monitor is not None:
        found["time/train"] = (metrics["seconds/train"] + metrics["seconds/data"]) / _HOUR
        found["time/val"] = metrics["seconds/eval"] / _HOUR
        found["time/total"] = found["time/train"] + found["time/val"]
        if (batches := metrics.get("throughput/batches_per_sec")) is not None:
            found["throughput/samples_per_sec"] = batches * rows_per_batch
            found["throughput/device/samples_per_sec"] = batches * rows_per_batch / devices
            found["throughput/device/batches_per_sec"] = batches / devices
    if config.runtime_estimator is not None and (left := metrics.get("time/remaining_seconds")) is not None:
        found["time/remaining_estimate"] = left / _HOUR
    return found
