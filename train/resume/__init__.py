"""Finds the differences between the config and the config of a checkpoint, and decides how a resumed run handles each
difference.

This package depends only on configs and on the checkpoint's position in the data. It opens neither the data nor the
weights.
"""
