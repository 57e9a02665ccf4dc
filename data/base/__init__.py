"""Utilities for all packages in data/: errors, console output, durations, sizes, paths, hashes,
locks and workers.

Nothing here depends on records, rows or sources.
"""
