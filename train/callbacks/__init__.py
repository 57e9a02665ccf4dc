"""Composer callbacks that Composer itself does not have, one file each, and the code that creates Composer's own
callbacks.

A subject that needs several files has its own package, lower in the import order.
"""
