"""Tokenizers, chat templates and loss masks: from an example to token ids, and which of them are trained on.

How documents share a row belongs to data/preparation.
"""
