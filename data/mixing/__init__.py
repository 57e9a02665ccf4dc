"""Which rows each batch has: the closed form of the row order, stages resolved into batches, and resuming.

No row is read here.
"""
