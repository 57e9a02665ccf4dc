"""Where the metrics of a run go: JSON lines, TensorBoard, W&B, MLflow and log files, one a module.

What is measured belongs to the callbacks, what is shown on the console to train/console.
"""
