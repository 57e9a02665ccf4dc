"""Loggers for the metrics of a run: JSON lines, TensorBoard, W&B, MLflow and log files, one module each.

The callbacks measure; train/console shows metrics on the console.
"""
