"""Valid examples, their possible defects, and functions that convert a dataset's record to an example.

Tokens are handled in data/tokenization.
"""
