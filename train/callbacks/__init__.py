"""Callbacks that Composer itself does not provide, one per file, and the code that creates Composer's own callbacks.

A callback that needs several files is in its own package, which is earlier in the import order.
"""
