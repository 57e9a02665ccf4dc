"""Reads and writes the files of a checkpoint. Files are written with hashes and committed by a manifest. They are
verified when they are read, and unpickled without executing code.

The content of the files (weights, optimizer, position) belongs in train/checkpoint.
"""
