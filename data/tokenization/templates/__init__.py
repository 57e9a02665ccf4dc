"""Render a conversation with the chat template and split it into prompts and responses, and check that the template
leaves nothing out.

Token ids and loss masks are computed in data/tokenization.
"""
