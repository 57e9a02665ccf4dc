"""Make batches of prepared rows, for any number of ranks and workers, and limit the size of downloaded shards.

The rows of each batch are planned in data/mixing.
"""
