"""Callbacks that Composer lacks, one file each, and the construction of Composer's own callbacks.

A subject that needs several files has its own package, lower in the import order.
"""
