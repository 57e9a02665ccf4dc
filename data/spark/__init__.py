"""Spark: sessions, the check for Java, and functions that run on executors.

What Spark computes is defined in data/preparation/engines and data/curation.
"""
