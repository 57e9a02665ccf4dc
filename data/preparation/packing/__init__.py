"""Converts chunks of a source to rows: workers tokenize documents, and windows of documents are packed into rows.

Files are written in data/preparation/parts.
"""
