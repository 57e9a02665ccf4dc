"""Reads the files of a log folder, metrics.jsonl and record.jsonl, and derives the values that train/report shows."""
