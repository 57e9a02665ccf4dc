"""The forms of valid examples, checks with a message for each defect, and functions that convert a dataset's records to
examples.

Tokens are handled in data/tokenization.
"""
