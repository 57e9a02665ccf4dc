"""Utilities for all packages in data/: errors, console, durations, sizes, paths, secrets, locks, workers.

Nothing here depends on records, rows or sources.
"""
