"""Composer callbacks that Composer itself does not have, one file each, and the code that creates Composer's own
callbacks.

A feature that needs several files has its own package, earlier in the import order.
"""
