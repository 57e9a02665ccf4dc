"""Reading the files of a log folder: metrics.jsonl, record.jsonl, and values derived from them. train/report shows
these values.
"""
