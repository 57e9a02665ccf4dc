"""The definition of valid examples, the errors that examples can have, and functions that convert records of a dataset
to examples.

Tokens are handled in data/tokenization.
"""
