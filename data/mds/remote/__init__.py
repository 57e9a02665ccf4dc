"""Files of a remote folder (a folder, s3://, gs://, hf://): fetched within a time limit, and listed with their sizes.

What the files contain is checked in data/mds.
"""
