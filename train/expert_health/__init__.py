"""Measures the experts of a run (loads, routers and gradients of each layer), and decides which experts are reported.

The sums of a step are collected in train/stability; metrics are written by train/loggers.
"""
