"""The output of scripts/inspect_data.py, which shows prepared rows.

This package does not change data. Shards are verified in data/loading.
"""
