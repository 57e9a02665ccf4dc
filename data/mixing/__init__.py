"""Computes the rows of each batch: the order of rows in closed form, the conversion of stages to batches, and resuming.

This package reads no rows.
"""
