"""Computes which rows are in each batch: the order of rows, the conversion of stages to batches, and resuming.

This package reads no rows.
"""
