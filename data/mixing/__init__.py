"""Which rows are in each batch: the row order in closed form, the conversion of stages to batches, and resuming.

This package reads no rows.
"""
