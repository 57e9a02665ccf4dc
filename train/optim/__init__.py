"""Optimizers, their parameter groups, and learning-rate schedules.

What a checkpoint says of its optimizer belongs to train/checkpoint.
"""
