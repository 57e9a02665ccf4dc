"""MDS folders, local or remote: index, shards, download, upload, and a writer that can be resumed.

The meaning of the samples is defined in the packages that read them.
"""
