"""What a valid example is, every way in which it can be defective, and functions that make one of a dataset's record.

Tokens belong to data/tokenization.
"""
