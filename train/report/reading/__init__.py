"""Reads the files of a log folder, metrics.jsonl and record.jsonl, and computes values from them. train/report
shows these values."""
