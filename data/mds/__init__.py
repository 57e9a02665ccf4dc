"""MDS folders, local or remote: index, shards, download, upload, and a writer that can be resumed.

The packages that read samples define what they mean.
"""
