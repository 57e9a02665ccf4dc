"""Loggers for the metrics of a run: JSON lines, TensorBoard, W&B, MLflow and log files, one module each.

Callbacks compute the metrics; train/console shows them on the console.
"""
