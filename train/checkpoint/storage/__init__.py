"""The files of a checkpoint: written with hashes, committed by a manifest, verified when read, unpickled without code.

What the files hold (weights, optimizer, position) belongs in train/checkpoint.
"""
