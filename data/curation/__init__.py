"""Curation: the steps of scripts/curate.py, which convert raw text to the documents that train.py reads, on Spark.

Every removal is counted and sampled. What a step does is defined in the packages of the steps; this package runs the
steps, and stores their results.
"""
