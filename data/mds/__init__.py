"""Local and remote MDS folders: index, shards, download, upload, and a writer that can resume.

The packages that read samples define what they mean.
"""
