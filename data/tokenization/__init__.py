"""Tokenizers, chat templates and loss masks: from an example to token ids, and which of them are trained on.

Packing of documents into rows is in data/preparation.
"""
