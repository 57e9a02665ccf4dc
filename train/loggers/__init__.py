"""Loggers that write the metrics of a run, one module each: JSON lines, TensorBoard, W&B, MLflow and log files.

Callbacks compute the metrics; train/console shows them on the console.
"""
