"""Conversion by hand, once: the command lines of scripts/convert_*.py, and what they call.

How rows are written belongs to data/preparation.
"""
