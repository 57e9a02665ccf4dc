"""Callbacks that Composer lacks, one file each, and the construction of Composer's own.

A callback that needs more than one file has its subject in a package below.
"""
