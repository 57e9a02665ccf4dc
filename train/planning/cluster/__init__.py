"""Predictions for a run on a given number of nodes and GPUs: times, a search for better settings, and the report.

Nothing here is measured; the code names its assumptions.
"""
