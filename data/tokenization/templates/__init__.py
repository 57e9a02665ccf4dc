"""A conversation as the chat template writes it, cut into prompts and responses; nothing may be lost on the way.

Token ids and loss masks belong to data/tokenization.
"""
