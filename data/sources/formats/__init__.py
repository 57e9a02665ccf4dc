"""Parsers for file formats, one module per format. A parser converts the bytes of a file to (location, record) pairs.

names.py finds the format from the name of a file. The files to read are chosen in data/sources.
"""
