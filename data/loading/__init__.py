"""From prepared rows to batches on any number of ranks and workers, and the cache of downloaded shards.

Which rows a batch has is decided in data/mixing.
"""
