"""Predictions for a run on given nodes and GPUs: times, a search for better settings, and the report.

Nothing is measured. The code states its assumptions.
"""
