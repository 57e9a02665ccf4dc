"""What scripts/inspect_data.py shows of prepared rows.

Nothing here changes data.
"""
