"""Causal attention within each document of packed tokens: the layer, its backends, layouts and the KV cache.

All backends compute the same result.
"""
