"""Conversion of datasets from the command line: the arguments of scripts/convert_*.py, and their implementation.

The code that writes rows is in data/preparation.
"""
