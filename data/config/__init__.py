"""The sections of a config that describe the data, and the base class of all sections, which checks types, values, and
rules between values.

This package opens no files. The packages that read the data check whether the data exists.
"""
