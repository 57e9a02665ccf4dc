"""MDS folders, here or remote: index, shards, download, upload, and the writer that resumes.

What the samples mean belongs to the packages that read them.
"""
