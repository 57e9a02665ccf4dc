"""Files of a remote folder (a path, s3://, gs://, hf://): fetched within a time limit, and listed with their sizes.

The content of the files is checked in data/mds.
"""
