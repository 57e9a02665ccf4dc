"""Measures the speed of a run and where its time is spent: throughput, memory, remaining time, and profiles of single
steps.

train/planning estimates the resources of a run, and train/supervision ends runs that hang or fail.
"""
