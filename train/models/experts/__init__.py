"""Dropless experts: the assignment of tokens to experts, and the backends that compute the experts.

The router is in train/models/moe.py.
"""
