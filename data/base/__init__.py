"""Utilities for all packages in data/: errors, console output, durations, sizes, paths, secrets, locks and workers.

Records, rows and sources are unknown here.
"""
