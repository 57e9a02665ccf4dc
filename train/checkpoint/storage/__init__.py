"""The files of a checkpoint: how they are written with hashes, committed with a manifest, verified when they are read,
and unpickled without executing code.

Code that interprets the content of the files (weights, optimizer state, position in the data) belongs in
train/checkpoint.
"""
