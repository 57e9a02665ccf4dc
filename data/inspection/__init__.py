"""Statistics, texts and duplicates of prepared rows, as shown by scripts/inspect_data.py.

This package does not change data. Shards are verified in data/loading.
"""
