"""Sources of records: hub datasets, local files and MDS folders. A source yields chunks; a chunk yields (place, record)
pairs.

The parsers for the individual file formats are in data/sources/formats.
"""
