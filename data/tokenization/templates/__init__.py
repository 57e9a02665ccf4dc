"""Renders a conversation with the chat template and splits it into prompts and responses. Checks that no part of the
conversation is lost.

Token ids and loss masks are computed in data/tokenization.
"""
