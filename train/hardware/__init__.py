"""The hardware of this machine: its device, its memory, and the kernels that are used on it.

The resources that a run needs belong to train/planning.
"""
