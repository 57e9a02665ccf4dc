"""Tokenizers, chat templates and loss masks: convert an example to token ids, and determine which ids are trained on.

Documents are packed into rows in data/preparation.
"""
