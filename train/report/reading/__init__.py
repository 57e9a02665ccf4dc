"""The files of a log folder, read: metrics.jsonl, record.jsonl, and what follows from them.

How they are shown is a matter of the package above.
"""
