"""Local and remote folders in MDS, the dataset format of the Streaming library: index, shards, download, upload, and a
writer that can resume.

The meaning of the samples is defined in the packages that read them.
"""
