"""One file format a module: from a file's bytes to (place, record) pairs, and what a file's name says about it.

Which files are read is decided in data/sources.
"""
