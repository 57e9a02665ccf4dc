"""Dropless experts: which token goes to which expert, and the backends that compute them.

The router is in train/models/moe.py.
"""
