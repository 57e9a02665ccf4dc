"""Optimizers, their parameter groups, and learning-rate schedules.

train/checkpoint saves and loads the optimizer's state.
"""
