"""What scripts/inspect_data.py shows of prepared rows.

Nothing here changes data; shards are verified in data/loading.
"""
