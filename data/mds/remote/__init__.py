"""Files of a remote folder (a path, s3://, gs:// or hf://): downloads with a time limit, and lists of files with their
sizes.

The content of the files is checked in data/mds.
"""
