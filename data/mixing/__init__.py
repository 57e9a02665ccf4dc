"""Which rows each batch has: the closed form of the row order, stages converted to batches, and resuming.

This package reads no rows.
"""
