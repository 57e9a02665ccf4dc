"""Counts, samples and histograms of the result of a step, and the locations of documents.

How they are shown is defined in data/curation/page.
"""
