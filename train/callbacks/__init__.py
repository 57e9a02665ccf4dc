"""Callbacks that Composer lacks, one file each, and the construction of Composer's own callbacks.

A subject that needs more than one file has its own package below.
"""
