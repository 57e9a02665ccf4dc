"""Supervision of a run: signals and preemption, deadlines, reported events, exit codes, and the file record.jsonl.

Checks of the loss and the gradients belong to train/stability; the format of checkpoints belongs to train/checkpoint.
"""
