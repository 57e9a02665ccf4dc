"""Tokenizers, chat templates and loss masks: the conversion of examples to token ids, and the choice of the tokens that
are trained on.

Packing of documents into rows is in data/preparation.
"""
