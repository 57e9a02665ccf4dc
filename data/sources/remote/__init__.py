"""Input files that are read over the network without a copy on the disk: objects in stores, and files of hub datasets.

The formats of the files are in data/sources/formats.
"""
