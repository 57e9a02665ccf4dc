"""Prepares an MDS folder of rows from a source: chunks, worker processes, packing, and the manifest.

Prepared rows are read in data/loading.
"""
