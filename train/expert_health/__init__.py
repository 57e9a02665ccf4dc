"""Metrics of the experts of a run: loads, routers and gradients of each layer, and reports of experts that get no
tokens or nearly all tokens.

train/stability collects the sums of a step, and train/loggers writes the metrics.
"""
