"""Which rows each batch has: the closed form of the row order, and stages and ramps above it.

No row is read here.
"""
