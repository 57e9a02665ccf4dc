"""Benchmarks, and what they share: common.py, gemms.py and watch.py.

Nothing here is needed to train a model.
"""
