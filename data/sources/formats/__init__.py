"""Readers of file formats, one module each: they convert the bytes of a file to pairs (place, record). The format is
chosen by the name of the file.

The choice of the files to read is made in data/sources.
"""
