"""A conversation rendered by the chat template and split into prompts and responses, with checks that nothing is lost.

Token ids and loss masks are computed in data/tokenization.
"""
