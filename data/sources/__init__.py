"""The sources of records: hub datasets, local files, MDS folders. A source yields chunks, and a chunk yields (place,
record) pairs. The place is the location of the record, for messages.

The parsers for the file formats are in data/sources/formats.
"""
