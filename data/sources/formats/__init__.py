"""One module per file format: from a file's bytes to (place, record) pairs, and the format from a file's name.

The choice of the files to read is made in data/sources.
"""
