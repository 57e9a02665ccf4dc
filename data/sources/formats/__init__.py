"""Parsers for file formats, one module per format. They convert the bytes of a file to (place, record) pairs.

names.py finds the format from the name of a file. The files to read are chosen in data/sources.
"""
