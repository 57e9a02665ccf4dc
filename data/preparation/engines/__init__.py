"""Engines that prepare the slices of a source: processes on this machine, a share of the slices per job, or Spark.

An engine decides where a slice is prepared. What is prepared is defined in data/preparation/parts.
"""
