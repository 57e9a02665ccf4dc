"""Where records come from: hub datasets, local files, MDS folders. A source yields chunks, and a chunk yields (place,
record) pairs.

The parsers for the file formats are in data/sources/formats.
"""
