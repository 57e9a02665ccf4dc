"""Callbacks that Composer lacks, one file each, and the construction of Composer's own callbacks.

A feature that needs several files has its own package, earlier in the import order.
"""
