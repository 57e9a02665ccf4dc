"""Utilities for all packages in data/: errors, console, durations, sizes, paths, secrets, locks, workers.

Records, rows and sources are unknown here.
"""
