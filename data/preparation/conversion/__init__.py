"""Manual conversion of datasets: the command lines of scripts/convert_*.py and their implementation.

The code that writes rows is in data/preparation.
"""
