"""The parts of a prepared folder: the files that a task writes for one slice of a source.

Tokenizing and packing belong to data/preparation.
"""
