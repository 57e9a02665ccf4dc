"""From prepared rows to batches, for any number of ranks and workers, and the cache of downloaded shards.

The rows of each batch are planned in data/mixing.
"""
