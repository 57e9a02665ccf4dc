"""Optimizers, their parameter groups, and learning-rate schedules.

The optimizer's state in checkpoints belongs to train/checkpoint.
"""
