"""Loads prepared rows into batches, for any number of ranks and workers, and manages the cache of downloaded shards.

The rows of each batch are planned in data/mixing.
"""
