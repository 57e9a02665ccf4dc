"""The hardware of this machine: its device, its memory, and the kernels that can run on it.

The resources that a run needs belong to train/planning.
"""
