"""Measures the speed of a run and where its time is spent: throughput, memory, remaining time, and profiles of single
steps.

The calculated resources of a run belong to train/planning, and what ends a run to train/supervision.
"""
