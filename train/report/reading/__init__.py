"""Reads metrics.jsonl and record.jsonl from a log folder, and computes the values that reports show. train/report
creates the reports."""
