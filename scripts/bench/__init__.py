"""Benchmarks, and their shared code: common.py, gemms.py and watch.py.

Training does not need this package.
"""
