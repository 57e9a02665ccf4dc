"""Benchmarks, and the code that they share (common.py, gemms.py and watch.py).

Training does not need this package.
"""
