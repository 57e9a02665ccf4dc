"""The files of a checkpoint: written with hashes, committed by a manifest, verified when read, and unpickled without
executing code.

The content of the files (weights, optimizer, position) belongs in train/checkpoint.
"""
