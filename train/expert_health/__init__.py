"""Metrics of the experts of a run: loads, routers and gradients of each layer, and reports of experts without tokens or
with nearly all.

The sums of a step are collected in train/stability; metrics are written by train/loggers.
"""
