"""Where records come from: hub datasets, local files, MDS folders. A source becomes chunks, a chunk (place, record)
pairs.

How the bytes of a file are parsed belongs to data/sources/formats.
"""
