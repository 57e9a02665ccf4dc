"""Causal attention within each document of packed tokens: the layer, its backends, layouts and the KV cache.

Every backend gives the same numbers.
"""
