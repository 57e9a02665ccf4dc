"""Prepares an MDS folder of rows from a source: chunks, worker processes, packing, and the manifest.

The prepared rows are read in data/loading.
"""
