"""Predictions for a run on a given number of nodes and GPUs: times, a search for better settings, and the report.

Nothing is measured. The code states its assumptions.
"""
