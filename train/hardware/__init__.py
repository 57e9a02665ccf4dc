"""The hardware of this machine: its device, its memory, and the kernels that are used on it.

train/planning computes the resources that a run needs.
"""
