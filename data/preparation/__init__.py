"""Prepare an MDS folder of rows from a source: chunks, worker processes, packing, the manifest.

Prepared rows are read in data/loading.
"""
