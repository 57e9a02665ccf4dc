"""Conversion of datasets by command: the command-line interface of scripts/convert_*.py and its implementation.

The code that writes rows is in data/preparation.
"""
